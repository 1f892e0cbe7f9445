package policy

import (
	"slices"
	"testing"
	"time"
)

func pod(namespace, name string, labels map[string]string, ports ...uint16) LintWorkload {
	return LintWorkload{Workload: Workload{namespace, name, labels}, Enrolled: true, Ports: ports}
}

func service(namespace, name string, ports map[uint16]uint16) LintService {
	return LintService{Namespace: namespace, Name: name, Selector: app(name), Ports: ports}
}

func TestLint(t *testing.T) {
	reviews := pod("default", "reviews-1", app("reviews"), 9080)
	outside := pod("default", "reviews-1", app("reviews"), 9080)
	outside.Enrolled = false
	svc := service("default", "reviews", map[uint16]uint16{80: 9080})
	strict := pa("default", "strict", at(0), Strict, nil, nil)
	const reviewsHost = "reviews.default.svc.cluster.local"
	for _, tt := range []struct {
		name string
		in   LintInput
		want []string
	}{
		{"nothing to say", LintInput{
			Policies:  []PeerAuthentication{strict, pa("default", "w", at(0), Strict, app("reviews"), map[uint16]Mode{9080: Permissive})},
			Rules:     []DestinationRule{dr("default", "r", at(0), "reviews", tls(TLSIstioMutual))},
			Workloads: []LintWorkload{reviews}, Services: []LintService{svc},
		}, nil},
		{"a policy alone, without workloads, is not said to select nothing", LintInput{
			Policies: []PeerAuthentication{pa("default", "w", at(0), Strict, app("reviews"), nil)},
		}, nil},
		{"an invalid policy", LintInput{Policies: []PeerAuthentication{pa("default", "w", at(0), Strict, nil, map[uint16]Mode{80: Strict})}},
			[]string{"error: PeerAuthentication default/w: spec.portLevelMtls: port modes need a selector with labels (add spec.selector.matchLabels)"}},
		{"an invalid policy hides no other", LintInput{Policies: []PeerAuthentication{
			pa("default", "w", at(0), 9, nil, nil), pa("default", "x", at(1), Strict, nil, nil)}},
			[]string{"error: PeerAuthentication default/w: spec.mtls.mode: mode Mode(9) is unknown (UNSET, DISABLE, PERMISSIVE or STRICT)"}},
		{"a losing duplicate in a namespace", LintInput{Policies: []PeerAuthentication{pa("default", "newer", at(1), Disable, nil, nil), strict}},
			[]string{"warning: PeerAuthentication default/newer: has no effect: default/strict is older and selects the whole namespace; policies of one level are never merged (merge the two, or remove one)"}},
		{"a losing duplicate in the mesh", LintInput{Policies: []PeerAuthentication{
			pa("istio-system", "b", at(0), Disable, nil, nil), pa("istio-system", "a", at(0), Strict, nil, nil)}},
			[]string{"warning: PeerAuthentication istio-system/b: has no effect: istio-system/a is older and selects the whole mesh; policies of one level are never merged (merge the two, or remove one)"}},
		{"a losing duplicate with the same selector", LintInput{Policies: []PeerAuthentication{
			pa("default", "b", at(0), Disable, app("x"), nil), pa("default", "a", at(0), Strict, app("x"), nil)}},
			[]string{"warning: PeerAuthentication default/b: has no effect: default/a is older and selects the same workloads; policies of one level are never merged (merge the two, or remove one)"}},
		{"selectors that overlap on some workloads", LintInput{
			Policies: []PeerAuthentication{
				pa("default", "a", at(0), Strict, app("x"), nil),
				pa("default", "b", at(1), Disable, map[string]string{"tier": "front"}, nil)},
			Workloads: []LintWorkload{
				pod("default", "p1", map[string]string{"app": "x", "tier": "front"}), pod("default", "p2", map[string]string{"app": "x", "tier": "front"}),
				pod("default", "p3", map[string]string{"tier": "front"})},
		}, []string{"warning: PeerAuthentication default/b: spec.selector: has no effect on 2 workloads such as default/p1: default/a is older and selects them too (make the selectors exclude each other)"}},
		{"a selector in the root namespace", LintInput{
			Policies:  []PeerAuthentication{pa("istio-system", "w", at(0), Strict, app("reviews"), nil)},
			Workloads: []LintWorkload{reviews},
		}, []string{"warning: PeerAuthentication istio-system/w: spec.selector: ignored: a policy in the root namespace istio-system may not have a selector (remove the selector, or put the policy in the workloads' namespace)"}},
		{"the root namespace is the one given", LintInput{
			Root:     "mesh",
			Policies: []PeerAuthentication{pa("mesh", "w", at(0), Strict, app("reviews"), nil), pa("istio-system", "w", at(0), Strict, app("x"), nil)},
		}, []string{"warning: PeerAuthentication mesh/w: spec.selector: ignored: a policy in the root namespace mesh may not have a selector (remove the selector, or put the policy in the workloads' namespace)"}},
		{"a selector that matches nothing", LintInput{
			Policies: []PeerAuthentication{pa("test", "w", at(0), Strict, app("reviews"), nil)}, Workloads: []LintWorkload{reviews},
		}, []string{"warning: PeerAuthentication test/w: spec.selector: selects no workload of namespace test"}},
		{"a selector that matches nothing that is enrolled", LintInput{
			Policies: []PeerAuthentication{pa("default", "w", at(0), Strict, app("reviews"), nil)}, Workloads: []LintWorkload{outside},
		}, []string{"warning: PeerAuthentication default/w: spec.selector: selects only workloads that are not enrolled, such as default/reviews-1: nothing enforces it (enrol it, or remove the policy)"}},
		{"a selector without labels", LintInput{Policies: []PeerAuthentication{{Namespace: "default", Name: "w", SelectorPresent: true}}},
			[]string{"warning: PeerAuthentication default/w: spec.selector: a selector without labels selects every workload, as no selector does (remove it, or give it matchLabels)"}},
		{"the Service's port in portLevelMtls", LintInput{
			Policies:  []PeerAuthentication{pa("default", "w", at(0), Strict, app("reviews"), map[uint16]Mode{80: Permissive})},
			Workloads: []LintWorkload{reviews}, Services: []LintService{svc},
		}, []string{"warning: PeerAuthentication default/w: spec.portLevelMtls.80: 80 is the Service's port, the container's is 9080: ports here are the container's (write 9080)"}},
		{"a port that no container declares", LintInput{
			Policies:  []PeerAuthentication{pa("default", "w", at(0), Strict, app("reviews"), map[uint16]Mode{8081: Permissive})},
			Workloads: []LintWorkload{reviews},
		}, []string{"warning: PeerAuthentication default/w: spec.portLevelMtls.8081: no container of the selected workloads declares port 8081"}},
		{"containers need not declare ports", LintInput{
			Policies:  []PeerAuthentication{pa("default", "w", at(0), Strict, app("reviews"), map[uint16]Mode{8081: Permissive})},
			Workloads: []LintWorkload{pod("default", "p", app("reviews"))},
		}, nil},
		{"DISABLE against STRICT", LintInput{
			Policies: []PeerAuthentication{strict}, Rules: []DestinationRule{dr("web", "off", at(0), reviewsHost, tls(TLSDisable))},
			Workloads: []LintWorkload{reviews}, Services: []LintService{svc},
		}, []string{"warning: DestinationRule web/off: spec.trafficPolicy.tls.mode: DISABLE sends plaintext, which is refused by what PeerAuthentication default/strict makes STRICT: default/reviews-1 (use ISTIO_MUTUAL, or remove the rule)"}},
		{"DISABLE against STRICT on one port", LintInput{
			Policies: []PeerAuthentication{strict},
			Rules: []DestinationRule{dr("web", "off", at(0), "*.default.svc.cluster.local", nil).with(func(r *DestinationRule) {
				r.PortTLS = map[uint16]*ClientTLS{80: tls(TLSDisable)}
			})},
			Workloads: []LintWorkload{reviews}, Services: []LintService{{Namespace: "default", Name: "reviews",
				Workloads: []Ref{{"default", "reviews-1"}}, Ports: map[uint16]uint16{80: 9080}}},
		}, []string{"warning: DestinationRule web/off: spec.trafficPolicy.portLevelSettings[80].tls.mode: DISABLE sends plaintext, which is refused by what PeerAuthentication default/strict makes STRICT: default/reviews-1 (use ISTIO_MUTUAL, or remove the rule)"}},
		{"DISABLE against a port that is PERMISSIVE is fine", LintInput{
			Policies:  []PeerAuthentication{strict, pa("default", "w", at(0), Unset, app("reviews"), map[uint16]Mode{9080: Permissive})},
			Rules:     []DestinationRule{dr("web", "off", at(0), reviewsHost, tls(TLSDisable))},
			Workloads: []LintWorkload{reviews}, Services: []LintService{svc},
		}, nil},
		{"DISABLE against a STRICT workload behind a Service of unknown ports", LintInput{
			Policies: []PeerAuthentication{strict}, Rules: []DestinationRule{dr("web", "off", at(0), "*", tls(TLSDisable))},
			Workloads: []LintWorkload{reviews}, Services: []LintService{service("default", "reviews", nil)},
		}, []string{"warning: DestinationRule web/off: spec.trafficPolicy.tls.mode: DISABLE sends plaintext, which is refused by what PeerAuthentication default/strict makes STRICT: default/reviews-1 (use ISTIO_MUTUAL, or remove the rule)"}},
		{"DISABLE against a workload outside the mesh is fine, even where STRICT would hold", LintInput{
			Policies: []PeerAuthentication{strict}, Rules: []DestinationRule{dr("web", "off", at(0), reviewsHost, tls(TLSDisable))},
			Workloads: []LintWorkload{outside}, Services: []LintService{svc},
		}, nil},
		{"ISTIO_MUTUAL against a workload outside the mesh", LintInput{
			Rules:     []DestinationRule{dr("web", "on", at(0), reviewsHost, tls(TLSIstioMutual))},
			Workloads: []LintWorkload{outside}, Services: []LintService{svc},
		}, []string{"warning: DestinationRule web/on: spec.trafficPolicy.tls.mode: requires mTLS, which a workload that is not enrolled cannot do: connections are refused: default/reviews-1 (enrol the workload, or remove the rule)"}},
		{"ISTIO_MUTUAL against DISABLE", LintInput{
			Policies:  []PeerAuthentication{pa("default", "off", at(0), Disable, nil, nil)},
			Rules:     []DestinationRule{dr("web", "on", at(0), reviewsHost, tls(TLSIstioMutual))},
			Workloads: []LintWorkload{reviews}, Services: []LintService{svc},
		}, []string{"warning: DestinationRule web/on: spec.trafficPolicy.tls.mode: requires mTLS, which is refused by what PeerAuthentication default/off makes DISABLE: default/reviews-1 (change one of the two)"}},
		{"a rule for a Service that does not exist", LintInput{
			Rules: []DestinationRule{dr("web", "r", at(0), "nobody", nil), dr("web", "s", at(0), "www.example.org", nil)}, Services: []LintService{svc},
		}, []string{"warning: DestinationRule web/r: spec.host: no Service is called nobody.web.svc.cluster.local"}},
		{"a host that is only half a name", LintInput{
			Rules: []DestinationRule{dr("web", "r", at(0), "reviews.default", nil)}, Services: []LintService{svc},
		}, []string{"warning: DestinationRule web/r: spec.host: a host with dots is taken as it stands, and no Service is called reviews.default (write reviews.default.svc.cluster.local)"}},
		{"settings for a port that the Service does not have", LintInput{
			Rules: []DestinationRule{dr("default", "r", at(0), "reviews", nil).with(func(r *DestinationRule) {
				r.PortTLS = map[uint16]*ClientTLS{9080: tls(TLSIstioMutual)}
			})},
			Workloads: []LintWorkload{reviews}, Services: []LintService{svc},
		}, []string{"warning: DestinationRule default/r: spec.trafficPolicy.portLevelSettings[9080].port: no Service that the host means has port 9080 (ports here are the Service's, not the container's)"}},
		{"a losing rule for the same host", LintInput{
			Rules: []DestinationRule{dr("default", "b", at(1), reviewsHost, nil), dr("default", "a", at(0), "reviews", nil), dr("web", "c", at(1), reviewsHost, nil)},
		}, []string{"warning: DestinationRule default/b: spec.host: has no effect: default/a is older and is for the same host reviews.default.svc.cluster.local (merge the two, or remove one)"}},
		{"rules for different clients do not lose", LintInput{
			Rules: []DestinationRule{
				dr("default", "b", at(2), "reviews", nil),
				dr("default", "a", at(0), "reviews", nil).with(func(r *DestinationRule) { r.Selector = app("x") }),
				dr("default", "c", at(1), "reviews", nil).with(func(r *DestinationRule) { r.ExportTo = []string{"."} })},
		}, nil},
		{"a workloadSelector that matches nothing", LintInput{
			Rules:     []DestinationRule{dr("web", "r", at(0), reviewsHost, nil).with(func(r *DestinationRule) { r.Selector = app("x") })},
			Workloads: []LintWorkload{reviews},
		}, []string{"warning: DestinationRule web/r: spec.workloadSelector: selects no workload of namespace web (it selects clients, in the rule's own namespace)"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := []string{}
			for _, f := range Lint(tt.in) {
				got = append(got, f.String())
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got:")
				for _, f := range got {
					t.Errorf("  %s", f)
				}
			}
		})
	}
}

func TestLintOfTenThousandPoliciesAndWorkloadsTakesSeconds(t *testing.T) {
	for _, kind := range crowds {
		t.Run(kind, func(t *testing.T) {
			policies, workloads := crowd(kind, 10_000)
			in := LintInput{Policies: policies}
			for _, w := range workloads {
				in.Workloads = append(in.Workloads, LintWorkload{Workload: w, Enrolled: true, Ports: []uint16{9080}})
				in.Services = append(in.Services, LintService{Namespace: w.Namespace, Name: w.Name, Selector: app(w.Name),
					Ports: map[uint16]uint16{80: 9080}})
				in.Rules = append(in.Rules, dr(w.Namespace, w.Name, at(0), w.Name, tls(TLSIstioMutual)))
			}
			start := time.Now()
			Lint(in)
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}
