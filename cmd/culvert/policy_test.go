package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/agent/source/kube"
)

const policyManifests = `
apiVersion: v1
kind: Namespace
metadata: {name: n, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: n, labels: {app: b, istio.io/dataplane-mode: none}}
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: n, labels: {app: a}}
spec: {containers: [{name: c, ports: [{name: web, containerPort: 9080}]}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: n}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: a, namespace: n, creationTimestamp: 2024-01-01T00:00:00Z}
spec: {selector: {matchLabels: {app: a}}, portLevelMtls: {9080: {mode: PERMISSIVE}, 9090: {}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: late, namespace: n, creationTimestamp: 2024-01-02T00:00:00Z}
spec: {selector: {matchLabels: {app: a}}, mtls: {mode: DISABLE}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
`

// runPolicy runs `culvert policy ARGS` on standard input.
func runPolicy(stdin string, args ...string) (stdout, stderr string, err error) {
	var out, errOut bytes.Buffer
	c := policyCommand(func(context.Context, kube.Access) (source.Contents, error) {
		return source.Contents{}, errors.New("API server: no kubeconfig is set")
	})
	c.SilenceErrors, c.SilenceUsage = true, true
	c.SetArgs(args)
	c.SetIn(strings.NewReader(stdin))
	c.SetOut(&out)
	c.SetErr(&errOut)
	err = c.Execute()
	return out.String(), errOut.String(), err
}

func codeOf(err error) int {
	var exit *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.code
	}
	return 1
}

func TestExplainJSON(t *testing.T) {
	stdout, stderr, err := runPolicy(policyManifests, "explain", "-f", "-", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var got []map[string]any
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 {
		t.Fatalf("%d pods", len(got))
	}
	for key, want := range map[string]string{
		"namespace": "n", "pod": "a", "mode": "STRICT", "policy": "n/strict", "enrolled": "true",
		"enrolledReason": "namespace label istio.io/dataplane-mode=ambient",
		"ports":          "map[9080:PERMISSIVE 9090:STRICT]", "losers": "[n/late]", "overridden": "[]",
	} {
		if s := fmt.Sprint(got[0][key]); s != want {
			t.Errorf("%s: got %s, want %s", key, s, want)
		}
	}
	if got[1]["enrolled"] != false || got[1]["pod"] != "b" {
		t.Errorf("second pod: %v", got[1])
	}
	if !strings.Contains(stderr, "passed over: 1 Deployment") {
		t.Errorf("stderr: %s", stderr)
	}
}

func TestExplainArguments(t *testing.T) {
	for _, tc := range []struct {
		args, stdout, err string
	}{
		{"n/a", "n          a    yes       STRICT  9080=PERMISSIVE,9090=STRICT  n/strict", ""},
		{"n/a:9080", "port 9080: PERMISSIVE, decided by n/a", ""},
		{"n/a:web", "port 9080: PERMISSIVE, decided by n/a", ""},
		{"n/a:1", "port 1: STRICT, decided by n/strict", ""},
		{"n/b", "enrolled: no (opted out by pod label", ""},
		{"n/nobody", "", "pod n/nobody is not among what was read"},
		{"n", "", "NAMESPACE/POD"},
		{"n/a:0", "", "port \"0\""},
		{"n/a:65536", "", "port \"65536\""},
		{"n/a:http", "", "port \"http\""},
		{"n/a:", "", "port \"\""},
	} {
		stdout, _, err := runPolicy(policyManifests, "explain", "-f", "-", tc.args)
		if tc.err == "" && (err != nil || !strings.Contains(stdout, tc.stdout)) {
			t.Errorf("%s: %v\n%s", tc.args, err, stdout)
		}
		if tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
			t.Errorf("%s: error is %v, want %s", tc.args, err, tc.err)
		}
	}
}

func TestExplainBroken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.yaml")
	broken := policyManifests + "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x, namespace: n}\nspec:\n  mtls:\n    mode: STRIKT\n"
	if err := os.WriteFile(file, []byte(broken), 0o644); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, err := runPolicy("", "explain", "-f", file)
	if codeOf(err) != 1 || !strings.Contains(stdout, "n/strict") {
		t.Errorf("error is %v, output\n%s", err, stdout)
	}
	want := fmt.Sprintf("%s:%d: document 8: PeerAuthentication n/x: spec.mtls.mode: ", file, strings.Count(broken, "\n"))
	if !strings.Contains(stderr, want) {
		t.Errorf("no %q in %s", want, stderr)
	}
}

func TestLint(t *testing.T) {
	selectorInRoot := strings.ReplaceAll(policyManifests, "name: late, namespace: n", "name: late, namespace: istio-system")
	for name, tc := range map[string]struct {
		stdin string
		args  []string
		code  int
		want  string
	}{
		"warnings":         {policyManifests, nil, 0, "n/late"},
		"strict":           {policyManifests, []string{"--strict"}, 1, "n/late"},
		"selector in root": {selectorInRoot, nil, 0, "istio-system/late"},
		"clean":            {namespaceOnly, []string{"--strict"}, 0, ""},
		"error as data":    {"kind: [", []string{"-o", "json"}, 1, `"severity": "error"`},
		"clean as data":    {namespaceOnly, []string{"-o", "json"}, 0, "[]"},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, _, err := runPolicy(tc.stdin, append([]string{"lint", "-f", "-"}, tc.args...)...)
			if codeOf(err) != tc.code || !strings.Contains(stdout, tc.want) {
				t.Errorf("error %v, output\n%s", err, stdout)
			}
		})
	}
}

const namespaceOnly = "apiVersion: v1\nkind: Namespace\nmetadata: {name: n}\n"

func TestFlagsAreChecked(t *testing.T) {
	for _, args := range [][]string{{"explain"}, {"lint"}, {"explain", "-f", "-", "-o", "xml"}} {
		if _, _, err := runPolicy("", args...); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}

func TestExplainOneNamespace(t *testing.T) {
	const pods = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: one}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: b, namespace: two}\n"
	for args, want := range map[string]string{"": "one two", "-n two": "two", "a -n one": "one", "-n none": "", "two/b": "two"} {
		stdout, _, err := runPolicy(pods, append([]string{"explain", "-f", "-", "-o", "json"}, strings.Fields(args)...)...)
		var got []struct{ Namespace string }
		if err := errors.Join(err, json.Unmarshal([]byte(stdout), &got)); err != nil {
			t.Fatal(args, err)
		}
		names := []string{}
		for _, g := range got {
			names = append(names, g.Namespace)
		}
		if strings.Join(names, " ") != want {
			t.Errorf("%q: %q, want %q", args, names, want)
		}
	}
	for _, args := range []string{"a", "one/a -n two", "a/b/c"} {
		if _, _, err := runPolicy(pods, append([]string{"explain", "-f", "-"}, strings.Fields(args)...)...); codeOf(err) != exitUsage {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// TestExplainLarge holds the promise that ten thousand pods and policies take seconds.
func TestExplainLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	const n = 10_000
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Pod
metadata:
  name: pod-%[1]d
  namespace: n%[2]d
  labels:
    app: a%[1]d
    pod-template-hash: 5f6d7c8b9
spec:
  serviceAccountName: default
  nodeName: node-%[2]d
  containers:
  - name: main
    image: registry.example/app:1.2.3
    env:
    - {name: A, value: b}
    ports:
    - containerPort: 8080
      name: http
status:
  podIP: 10.%[3]d.%[4]d.1
  conditions:
  - {type: Ready, status: "True"}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: policy-%[1]d
  namespace: n%[2]d
spec:
  selector:
    matchLabels:
      app: a%[1]d
  mtls:
    mode: STRICT
  portLevelMtls:
    8080:
      mode: PERMISSIVE
`, i, i%100, i/256, i%256)
	}
	start := time.Now()
	stdout, _, err := runPolicy(b.String(), "explain", "-f", "-", "-o", "json")
	took := time.Since(start)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d MB in %v", b.Len()>>20, took)
	if got := strings.Count(stdout, `"8080": "PERMISSIVE"`); got != n {
		t.Errorf("%d pods explained", got)
	}
	if took > 30*time.Second {
		t.Errorf("took %v", took)
	}
}
