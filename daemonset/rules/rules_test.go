package rules

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// promtool runs the one of Debian's package prometheus.
func promtool(t *testing.T, arguments ...string) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		t.Fatalf("promtool is missing (apt-get install --no-install-recommends prometheus): %v", err)
	}
	if out, err := exec.CommandContext(t.Context(), path, arguments...).CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(arguments, " "), err, out)
	}
}

func TestRulesAreWellFormed(t *testing.T) { promtool(t, "check", "rules", "culvert.yaml") }

func TestAlertsFireWhenTheyShouldAndElseNot(t *testing.T) {
	promtool(t, "test", "rules", "testdata/culvert.yaml")
}

func TestEveryAlertIsTestedAndSaysWhatToDo(t *testing.T) {
	rules, err := os.ReadFile("culvert.yaml")
	if err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile("testdata/culvert.yaml")
	if err != nil {
		t.Fatal(err)
	}
	alerts := strings.Split(string(rules), "  - alert: ")[1:]
	if len(alerts) == 0 {
		t.Fatal("no alerts")
	}
	needed := regexp.MustCompile(`(?s)severity: (warning|critical).*summary: .*description: .*runbook: `)
	for _, a := range alerts {
		name, rest, _ := strings.Cut(a, "\n")
		if !needed.MatchString(rest) {
			t.Errorf("%s lacks a severity, a summary, a description or a runbook", name)
		}
		if !strings.Contains(string(tests), `alertname="`+name+`"`) {
			t.Errorf("%s is in no test", name)
		}
	}
}
