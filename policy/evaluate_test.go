package policy

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"
)

func at(seconds int) time.Time { return time.Unix(int64(1_700_000_000+seconds), 0) }

func app(name string) map[string]string { return map[string]string{"app": name} }

// pa is a policy written as in a table: "namespace/name".
func pa(namespace, name string, created time.Time, mode Mode, selector map[string]string, ports map[uint16]Mode) PeerAuthentication {
	return PeerAuthentication{Namespace: namespace, Name: name, Created: created, Mode: mode, Selector: selector, Ports: ports}
}

func TestEffectiveMode(t *testing.T) {
	productpage := Workload{Namespace: "default", Name: "productpage", Labels: map[string]string{"app": "productpage", "version": "v1"}}
	for _, tt := range []struct {
		name     string
		policies []PeerAuthentication
		port     uint16
		want     string
	}{
		{"without a policy it is PERMISSIVE by default", nil, 80, "PERMISSIVE default"},
		{"a namespace policy holds for the namespace",
			[]PeerAuthentication{pa("default", "strict", at(0), Strict, nil, nil)}, 80, "STRICT default/strict"},
		{"a policy of another namespace does not matter",
			[]PeerAuthentication{pa("test", "strict", at(0), Strict, nil, nil)}, 80, "PERMISSIVE default"},
		{"a mesh policy holds everywhere",
			[]PeerAuthentication{pa("istio-system", "mesh", at(0), Strict, nil, nil)}, 80, "STRICT istio-system/mesh"},
		{"a workload policy is stronger than a namespace policy",
			[]PeerAuthentication{pa("default", "ns", at(0), Strict, nil, nil), pa("default", "w", at(1), Permissive, app("productpage"), nil)},
			80, "PERMISSIVE default/w"},
		{"a workload policy left UNSET keeps the namespace's mode",
			[]PeerAuthentication{pa("default", "ns", at(0), Strict, nil, nil), pa("default", "w", at(1), Unset, app("productpage"), nil)},
			80, "STRICT default/ns"},
		{"a selector in the root namespace is ignored",
			[]PeerAuthentication{pa("istio-system", "w", at(0), Strict, app("productpage"), nil)}, 80, "PERMISSIVE default"},
		{"an empty selector selects everything",
			[]PeerAuthentication{pa("default", "ns", at(0), Strict, map[string]string{}, nil)}, 80, "STRICT default/ns"},
		{"every label of the selector must be there",
			[]PeerAuthentication{pa("default", "w", at(0), Strict, map[string]string{"app": "productpage", "x": ""}, nil)}, 80, "PERMISSIVE default"},
		{"the oldest of a level wins whatever its mode",
			[]PeerAuthentication{pa("default", "a", at(5), Strict, nil, nil), pa("default", "b", at(4), Disable, nil, nil)}, 80, "DISABLE default/b"},
		{"an older one that is UNSET still wins its level",
			[]PeerAuthentication{pa("default", "a", at(5), Strict, nil, nil), pa("default", "b", at(4), Unset, nil, nil)}, 80, "PERMISSIVE default"},
		{"within one second the name decides",
			[]PeerAuthentication{pa("default", "b", at(5), Strict, nil, nil), pa("default", "a", at(5).Add(900*time.Millisecond), Disable, nil, nil)},
			80, "DISABLE default/a"},
		{"names are compared by bytes: capitals first",
			[]PeerAuthentication{pa("default", "a", at(5), Strict, nil, nil), pa("default", "B", at(5), Disable, nil, nil)}, 80, "DISABLE default/B"},
		{"without creation time it is the newest",
			[]PeerAuthentication{pa("default", "a", time.Time{}, Strict, nil, nil), pa("default", "b", at(0), Disable, nil, nil)}, 80, "DISABLE default/b"},
		{"two without creation time tie, and the name decides",
			[]PeerAuthentication{pa("default", "b", time.Time{}, Strict, nil, nil), pa("default", "a", time.Time{}, Disable, nil, nil)},
			80, "DISABLE default/a"},
		{"one object given twice counts in its stricter form",
			[]PeerAuthentication{pa("default", "a", at(0), Disable, nil, nil), pa("default", "a", at(0), Strict, nil, nil)}, 80, "STRICT default/a"},
		{"a port is stronger than all else",
			[]PeerAuthentication{pa("default", "w", at(0), Strict, app("productpage"), map[uint16]Mode{9080: Permissive})}, 9080, "PERMISSIVE default/w"},
		{"the other ports keep the workload's mode",
			[]PeerAuthentication{pa("default", "w", at(0), Strict, app("productpage"), map[uint16]Mode{9080: Permissive})}, 80, "STRICT default/w"},
		{"a port left UNSET takes the workload's effective mode",
			[]PeerAuthentication{pa("default", "ns", at(0), Strict, nil, nil), pa("default", "w", at(0), Unset, app("productpage"), map[uint16]Mode{9080: Unset})},
			9080, "STRICT default/ns"},
		{"a port may be set where the workload's mode is UNSET",
			[]PeerAuthentication{pa("default", "ns", at(0), Strict, nil, nil), pa("default", "w", at(0), Unset, app("productpage"), map[uint16]Mode{9080: Disable})},
			9080, "DISABLE default/w"},
		{"ports of a losing workload policy do not count",
			[]PeerAuthentication{pa("default", "w", at(0), Strict, app("productpage"), nil),
				pa("default", "x", at(1), Strict, map[string]string{"version": "v1"}, map[uint16]Mode{9080: Disable})}, 9080, "STRICT default/w"},
		{"ports of a namespace policy do not count",
			[]PeerAuthentication{pa("default", "ns", at(0), Strict, nil, map[uint16]Mode{9080: Disable})}, 9080, "STRICT default/ns"},
		{"an unknown mode opens nothing",
			[]PeerAuthentication{pa("default", "ns", at(0), Mode(9), nil, nil)}, 80, "STRICT default/ns"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, policies := range [][]PeerAuthentication{tt.policies, reversed(tt.policies)} {
				p := NewSet("", policies).Effective(productpage).ForPort(tt.port)
				if got := fmt.Sprint(p.Mode, " ", p.Policy); got != tt.want {
					t.Errorf("got %s, want %s", got, tt.want)
				}
			}
		})
	}
}

func reversed[T any](list []T) []T {
	other := slices.Clone(list)
	slices.Reverse(other)
	return other
}

func TestWorkloadsOfTheRootNamespaceFollowTheMeshPolicyAlone(t *testing.T) {
	policies := []PeerAuthentication{
		pa("istio-system", "mesh", at(0), Strict, nil, nil),
		pa("istio-system", "gateway", at(0), Permissive, app("gateway"), map[uint16]Mode{80: Disable}),
	}
	e := NewSet("istio-system", policies).Explain(Workload{Namespace: "istio-system", Name: "gw", Labels: app("gateway")})
	want := Explanation{
		Decision: Decision{Mode: Strict, Policy: Ref{"istio-system", "mesh"}},
		Levels:   []LevelDecision{{Level: LevelMesh, Winner: Ref{"istio-system", "mesh"}, Mode: Strict, Losers: []Ref{}}},
		Ignored:  []Ref{{"istio-system", "gateway"}},
	}
	if !reflect.DeepEqual(e, want) {
		t.Errorf("got  %+v\nwant %+v", e, want)
	}
}

func TestTheRootNamespaceCanBeChosen(t *testing.T) {
	policies := []PeerAuthentication{
		pa("mesh", "all", at(0), Strict, nil, nil),
		pa("istio-system", "ordinary", at(0), Disable, nil, nil),
	}
	set := NewSet("mesh", policies)
	for namespace, want := range map[string]Mode{"default": Strict, "mesh": Strict, "istio-system": Disable} {
		if got := set.Effective(Workload{Namespace: namespace}).Mode; got != want {
			t.Errorf("%s: %s, want %s", namespace, got, want)
		}
	}
}

func TestPortsHoldsEveryPortOfTheWinningWorkloadPolicy(t *testing.T) {
	policies := []PeerAuthentication{
		pa("default", "ns", at(0), Strict, nil, nil),
		pa("default", "w", at(0), Unset, app("a"), map[uint16]Mode{80: Unset, 81: Permissive, 82: Strict, 0: Disable}),
	}
	ns, w := Ref{"default", "ns"}, Ref{"default", "w"}
	want := Decision{Mode: Strict, Policy: ns, Ports: map[uint16]PortDecision{80: {Strict, ns}, 81: {Permissive, w}, 82: {Strict, w}}}
	got := NewSet("", policies).Effective(Workload{Namespace: "default", Labels: app("a")})
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if m := got.Modes(); !m.Equal(Modes{Default: Strict, Ports: map[uint16]Mode{81: Permissive}}) {
		t.Errorf("modes %+v", m)
	}
}

func TestExplainNamesWinnersAndLosersOfEachLevel(t *testing.T) {
	policies := []PeerAuthentication{
		pa("istio-system", "mesh-2", at(9), Disable, nil, nil),
		pa("istio-system", "mesh-1", at(1), Strict, nil, nil),
		pa("istio-system", "selects", at(0), Disable, app("a"), nil),
		pa("istio-system", "selects-other", at(0), Disable, app("b"), nil),
		pa("default", "ns", at(0), Unset, nil, nil),
		pa("default", "w-3", at(3), Disable, app("a"), nil),
		pa("default", "w-2", at(2), Disable, map[string]string{"tier": "x"}, nil),
		pa("default", "w-1", at(1), Permissive, app("a"), nil),
		pa("default", "no", at(0), Disable, app("b"), nil),
	}
	got := NewSet("", policies).Explain(Workload{Namespace: "default", Labels: map[string]string{"app": "a", "tier": "x"}})
	want := Explanation{
		Decision: Decision{Mode: Permissive, Policy: Ref{"default", "w-1"}},
		Levels: []LevelDecision{
			{LevelMesh, Ref{"istio-system", "mesh-1"}, Strict, []Ref{{"istio-system", "mesh-2"}}},
			{LevelNamespace, Ref{"default", "ns"}, Unset, []Ref{}},
			{LevelWorkload, Ref{"default", "w-1"}, Permissive, []Ref{{"default", "w-2"}, {"default", "w-3"}}},
		},
		Ignored: []Ref{{"istio-system", "selects"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestSetDoesNotFollowChangesOfItsInput(t *testing.T) {
	policies := []PeerAuthentication{pa("default", "ns", at(0), Strict, nil, nil)}
	set := NewSet("", policies)
	policies[0].Mode, policies[0].Namespace = Disable, "other"
	if got := set.Effective(Workload{Namespace: "default"}).Mode; got != Strict {
		t.Errorf("got %s", got)
	}
}

// crowd is n policies and n workloads, in the ways in which an index can be made to fail.
func crowd(kind string, n int) ([]PeerAuthentication, []Workload) {
	policies := make([]PeerAuthentication, n)
	workloads := make([]Workload, n)
	for i := range n {
		name := fmt.Sprint("app-", i)
		p := pa("default", name, at(n-i), Strict, app(name), map[uint16]Mode{9080: Permissive})
		w := Workload{"default", name, map[string]string{"app": name, "tier": "x", "version": "v1"}}
		switch kind {
		case "one selector each in one namespace":
		case "all the same selector":
			p.Selector = map[string]string{"tier": "x"}
		case "one label shared by all selectors":
			p.Selector = map[string]string{"app": name, "tier": "x"}
		case "a namespace each":
			p.Namespace, w.Namespace = name, name
		case "no selector":
			p.Selector, p.Ports = nil, nil
		}
		policies[i], workloads[i] = p, w
	}
	return policies, workloads
}

var crowds = []string{
	"one selector each in one namespace", "all the same selector", "one label shared by all selectors", "a namespace each", "no selector",
}

func TestTenThousandPoliciesAndWorkloadsTakeWellUnderASecond(t *testing.T) {
	for _, kind := range crowds {
		t.Run(kind, func(t *testing.T) {
			policies, workloads := crowd(kind, 10_000)
			start := time.Now()
			set := NewSet("", policies)
			for _, w := range workloads {
				if d := set.Effective(w); d.Mode != Strict {
					t.Fatalf("%s is %s", w.Name, d.Mode)
				}
			}
			// Far above what it takes (about 20 ms), far below what a scan of all pairs would.
			if took := time.Since(start); took > time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func BenchmarkTenThousandPolicies(b *testing.B) {
	for _, kind := range crowds {
		policies, workloads := crowd(kind, 10_000)
		b.Run("index/"+kind, func(b *testing.B) {
			for b.Loop() {
				NewSet("", policies)
			}
		})
		set := NewSet("", policies)
		b.Run("evaluate 10000 workloads/"+kind, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for _, w := range workloads {
					set.Effective(w)
				}
			}
		})
	}
}

// TestWithEqualsNewSet changes one namespace at a time, the root's among them, and compares with a Set made anew.
func TestWithEqualsNewSet(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	modes := []Mode{Unset, Disable, Permissive, Strict}
	namespaces := []string{"root", "a", "b", "c"}
	current := map[string][]PeerAuthentication{}
	set := NewSet("root", nil)
	for round := range 500 {
		ns := namespaces[random.IntN(len(namespaces))]
		var list []PeerAuthentication
		for i := range random.IntN(4) {
			p := PeerAuthentication{Namespace: ns, Name: fmt.Sprint("p", i), Mode: modes[random.IntN(len(modes))]}
			if random.IntN(2) == 0 {
				p.Selector = map[string]string{"app": fmt.Sprint(random.IntN(2))}
				p.Ports = map[uint16]Mode{80: modes[random.IntN(len(modes))]}
			}
			list = append(list, p)
		}
		before, old := set, effectiveOfAll(set, namespaces)
		current[ns] = list
		set = set.With(map[string][]PeerAuthentication{ns: list})
		var all []PeerAuthentication
		for _, l := range current {
			all = append(all, l...)
		}
		if got, want := effectiveOfAll(set, namespaces), effectiveOfAll(NewSet("root", all), namespaces); !reflect.DeepEqual(got, want) {
			t.Fatalf("round %d: %s changed to %v: got %v, want %v", round, ns, list, got, want)
		}
		if !reflect.DeepEqual(effectiveOfAll(before, namespaces), old) {
			t.Fatalf("round %d: the Set before changed", round)
		}
	}
}

func effectiveOfAll(s *Set, namespaces []string) []Decision {
	var all []Decision
	for _, ns := range namespaces {
		for _, app := range []string{"0", "1", "2"} {
			all = append(all, s.Effective(Workload{Namespace: ns, Labels: map[string]string{"app": app}}))
		}
	}
	return all
}
