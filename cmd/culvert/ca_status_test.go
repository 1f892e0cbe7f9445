package main

import (
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/agent/identity/ca/kube"
	"github.com/culvert-mesh/culvert/agent/identity/ca/rotation"
)

func TestCAStatusTellsWhatAPersonWantsToKnow(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	certificate := func(role, subject string, left time.Duration) kube.Certificate {
		return kube.Certificate{Role: role, Subject: subject, Serial: "ab12", SHA256: strings.Repeat("f0", 32), NotAfter: now.Add(left)}
	}
	signs := certificate("signs", "CN=Culvert intermediate 1", 30*24*time.Hour)
	tests := []struct {
		name   string
		status kube.Status
		want   []string
	}{
		{"announced", kube.Status{Kind: "culvert", Phase: rotation.Announce, Waited: "30m0s", Wait: "1h0m0s", Leader: "ca-1", Intermediate: &signs,
			Next:  &rotation.Step{Action: rotation.Switch, At: now.Add(30 * time.Minute), Why: "was announced"},
			Roots: []kube.Certificate{certificate("signs", "CN=Culvert root 1", time.Hour), certificate("next", "CN=Culvert root 2", 1e6*time.Hour)}},
			[]string{"made and rotated by Culvert", "announce", "30m0s of 1h0m0s", "switch in 30m0s: was announced", "ca-1", "CN=Culvert root 2",
				"next", "in 1h0m0s", "2030-01-31"}},
		{"operator's", kube.Status{Kind: "operator", Roots: []kube.Certificate{certificate("trusted", "CN=corporate", -time.Hour)}},
			[]string{"the operator's, who rotates it", "trusted", "2029-12-31T23:00:00Z"}},
		{"orphan", kube.Status{Kind: "orphan"}, []string{"restore culvert-ca-root"}},
		{"subject that would steer a terminal", kube.Status{Kind: "operator", Roots: []kube.Certificate{certificate("trusted", "CN=x\x1b[2J\nfake", time.Hour)}},
			[]string{"CN=x?[2J?fake"}},
		{"none", kube.Status{Kind: "none"}, []string{"not made yet"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out strings.Builder
			if err := writeCAStatus(&out, &test.status, now); err != nil {
				t.Fatal(err)
			}
			for _, want := range test.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("no %q in\n%s", want, &out)
				}
			}
		})
	}
}
