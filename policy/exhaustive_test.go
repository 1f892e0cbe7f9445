package policy

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// absent is not a Mode: no policy at that level, or no entry for that port.
const absent = Mode(255)

var everyMode = []Mode{absent, Unset, Disable, Permissive, Strict}

// TestEveryCombinationOfLevelsAndPortsAgreesWithTheSpecification goes through mesh x namespace x
// workload x two ports x {absent, UNSET, DISABLE, PERMISSIVE, STRICT}.
func TestEveryCombinationOfLevelsAndPortsAgreesWithTheSpecification(t *testing.T) {
	const root = "istio-system"
	w := Workload{Namespace: "default", Name: "pod", Labels: map[string]string{"app": "a", "tier": "x"}}
	combinations := 0
	for _, mesh := range everyMode {
		for _, namespace := range everyMode {
			for _, workload := range everyMode {
				for _, first := range everyMode {
					for _, second := range everyMode {
						policies := combination(root, mesh, namespace, workload, first, second)
						name := fmt.Sprintf("%v/%v/%v/%v/%v", mesh, namespace, workload, first, second)
						agree(t, name, root, policies, w)
						slices.Reverse(policies)
						agree(t, name+" reversed", root, policies, w)
						combinations++
					}
				}
			}
		}
	}
	if combinations != 5*5*5*5*5 {
		t.Fatalf("went through %d combinations", combinations)
	}
}

// combination has the policies of a case, and around them some that must not matter.
func combination(root string, mesh, namespace, workload, first, second Mode) []PeerAuthentication {
	at := time.Unix(1000, 0)
	app := map[string]string{"app": "a"}
	policies := []PeerAuthentication{
		{Namespace: root, Name: "selector-in-root", Selector: app, Mode: Disable, Ports: map[uint16]Mode{9080: Disable}},
		{Namespace: "other", Name: "elsewhere", Created: at, Mode: Disable},
		{Namespace: "default", Name: "other-app", Created: at, Selector: map[string]string{"app": "b"}, Mode: Disable},
		{Namespace: "default", Name: "one-label-more", Created: at, Selector: map[string]string{"app": "a", "no": "x"}, Mode: Disable},
	}
	if mesh != absent {
		policies = append(policies,
			PeerAuthentication{Namespace: root, Name: "mesh", Created: at, Mode: mesh},
			PeerAuthentication{Namespace: root, Name: "mesh-newer", Created: at.Add(time.Second), Mode: Disable})
	}
	if namespace != absent {
		policies = append(policies,
			PeerAuthentication{Namespace: "default", Name: "namespace", Created: at, SelectorPresent: true, Mode: namespace},
			PeerAuthentication{Namespace: "default", Name: "namespace-newer", Created: at.Add(time.Second), Mode: Disable})
	}
	ports := map[uint16]Mode{}
	if first != absent {
		ports[9080] = first
	}
	if second != absent {
		ports[9090] = second
	}
	if workload != absent {
		policies = append(policies,
			PeerAuthentication{Namespace: "default", Name: "workload", Created: at, Selector: app, Mode: workload, Ports: ports},
			PeerAuthentication{Namespace: "default", Name: "workload-newer", Created: at.Add(time.Second),
				Selector: map[string]string{"tier": "x"}, Mode: Disable, Ports: map[uint16]Mode{9080: Disable, 80: Disable}})
	} else {
		// Ports without a winning workload policy count for nothing.
		policies = append(policies, PeerAuthentication{Namespace: "default", Name: "zz-ports-only", Created: at.Add(time.Hour), Ports: ports})
	}
	return policies
}

func agree(t *testing.T, name, root string, policies []PeerAuthentication, w Workload) {
	t.Helper()
	d := NewSet(root, policies).Effective(w)
	modes := d.Modes()
	for _, port := range []uint16{9080, 9090, 80} {
		mode, decidedBy := oracleEffective(root, policies, w, port)
		got := d.ForPort(port)
		if got.Mode.String() != mode || got.Policy.String() != decidedBy {
			t.Errorf("%s, port %d: %s by %s, want %s by %s", name, port, got.Mode, got.Policy, mode, decidedBy)
		}
		if m := modes.ForPort(port); m != got.Mode {
			t.Errorf("%s, port %d: Modes says %s, the decision %s", name, port, m, got.Mode)
		}
	}
}
