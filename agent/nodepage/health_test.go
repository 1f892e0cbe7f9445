package nodepage

import (
	"strings"
	"testing"
)

// TestHealthIsNotClaimed: of what the agent does not follow the page does not say that it does.
func TestHealthIsNotClaimed(t *testing.T) {
	for want, agent := range map[string]Agent{
		"cluster’s state is followed":       {Synced: true},
		"has not been read yet":             {},
		"pods: not up to date for &lt;1m0s": {Synced: true, Stale: []string{"pods: not up to date for <1m0s"}},
	} {
		body := get(Handler(&told{page: Page{Agent: agent}}, quiet()), "/").Body.String()
		if !strings.Contains(body, want) {
			t.Errorf("%+v: no %q", agent, want)
		}
		if followed := agent.Synced && agent.Stale == nil; strings.Contains(body, "is followed") != followed || strings.Contains(body, "the cluster is not followed") != (agent.Stale != nil) {
			t.Errorf("%+v: followed or not? %s", agent, body)
		}
	}
}
