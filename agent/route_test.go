package agent

import (
	"net/netip"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/policy"
	"github.com/culvert-mesh/culvert/tunnel/control"
)

const (
	serverAddress  = "10.1.0.2"
	legacyAddress  = "10.1.0.3"
	serviceAddress = "10.2.0.1"
	clientID       = 7
)

// routing is an agent with one local client, an enrolled server behind a Service, and a pod outside the mesh.
func routing(policies []policy.PeerAuthentication, rules []policy.DestinationRule) *Agent {
	address := netip.MustParseAddr
	client := source.Pod{Namespace: "web", Name: "client", ServiceAccount: "client", Addresses: []netip.Addr{address("10.1.0.1")}}
	snapshot := source.NewSnapshot("", source.Contents{
		Namespaces: []source.Namespace{{Name: "web", Labels: map[string]string{"istio.io/dataplane-mode": "ambient"}}},
		Pods: []source.Pod{client,
			{Namespace: "web", Name: "server", ServiceAccount: "server", Addresses: []netip.Addr{address(serverAddress)}},
			{Namespace: "old", Name: "legacy", ServiceAccount: "default", Addresses: []netip.Addr{address(legacyAddress)}},
		},
		Services: []source.Service{
			{Namespace: "web", Name: "server", Addresses: []netip.Addr{address(serviceAddress)}, Ports: []source.ServicePort{
				{Port: 80, Endpoints: []netip.AddrPort{netip.MustParseAddrPort(serverAddress + ":8080")}},
				{Port: 81},
			}},
			{Namespace: "old", Name: "legacy", Addresses: []netip.Addr{address("10.2.0.2")}, Ports: []source.ServicePort{
				{Port: 80, Endpoints: []netip.AddrPort{netip.MustParseAddrPort(legacyAddress + ":8080")}},
			}},
		},
		Policies: policies, Rules: rules,
	})
	w := &workload{id: clientID, pod: &client}
	return &Agent{
		Options:   Options{TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.local")},
		snapshot:  snapshot,
		policies:  policy.NewSet("istio-system", policies),
		rules:     policy.NewRuleSet("istio-system", "cluster.local", rules),
		workloads: map[uint64]*workload{clientID: w},
		byPod:     map[string]*workload{"web/client": w},
	}
}

func rule(host string, mode policy.TLSMode) []policy.DestinationRule {
	return []policy.DestinationRule{{Namespace: "web", Name: "rule", Host: host, TLS: &policy.ClientTLS{Mode: mode}}}
}

func TestRouteFollowsModeAndDestinationRule(t *testing.T) {
	const server, legacy = "server.web.svc.cluster.local", "legacy.old.svc.cluster.local"
	disable := []policy.PeerAuthentication{{Namespace: "web", Name: "off", Mode: policy.Disable}}
	strict := []policy.PeerAuthentication{{Namespace: "web", Name: "on", Mode: policy.Strict}}
	tests := map[string]struct {
		policies []policy.PeerAuthentication
		rules    []policy.DestinationRule
		to       string
		want     control.Action
	}{
		"enrolled pod by its address":           {to: serverAddress + ":8080", want: control.Action_ACTION_HBONE},
		"enrolled pod by its Service":           {to: serviceAddress + ":80", want: control.Action_ACTION_HBONE},
		"STRICT pod":                            {policies: strict, to: serviceAddress + ":80", want: control.Action_ACTION_HBONE},
		"DISABLE pod gets plaintext":            {policies: disable, to: serviceAddress + ":80", want: control.Action_ACTION_DIRECT},
		"pod outside the mesh":                  {to: legacyAddress + ":8080", want: control.Action_ACTION_DIRECT},
		"address that nothing explains":         {to: "10.1.0.99:80", want: control.Action_ACTION_DIRECT},
		"rule DISABLE":                          {rules: rule(server, policy.TLSDisable), to: serviceAddress + ":80", want: control.Action_ACTION_DIRECT},
		"rule ISTIO_MUTUAL":                     {rules: rule(server, policy.TLSIstioMutual), to: serviceAddress + ":80", want: control.Action_ACTION_HBONE},
		"rule MUTUAL without certificates":      {rules: rule(server, policy.TLSMutual), to: serviceAddress + ":80", want: control.Action_ACTION_HBONE},
		"rule ISTIO_MUTUAL, host not in mesh":   {rules: rule(legacy, policy.TLSIstioMutual), to: "10.2.0.2:80", want: control.Action_ACTION_REFUSE},
		"rule ISTIO_MUTUAL, workload DISABLE":   {policies: disable, rules: rule(server, policy.TLSIstioMutual), to: serviceAddress + ":80", want: control.Action_ACTION_REFUSE},
		"rule SIMPLE is refused, not plaintext": {rules: rule(server, policy.TLSSimple), to: serviceAddress + ":80", want: control.Action_ACTION_REFUSE},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			a := routing(test.policies, test.rules)
			answer, _ := a.resolve(destination{clientID, netip.MustParseAddrPort(test.to)})
			if len(answer.Endpoints) != 1 {
				t.Fatalf("%d endpoints (%s), want 1", len(answer.Endpoints), answer.Reason)
			}
			e := answer.Endpoints[0]
			if e.Action != test.want {
				t.Errorf("action %s because of %q, want %s", e.Action, e.Reason, test.want)
			}
			if (e.Identity != "") != (test.want == control.Action_ACTION_HBONE) {
				t.Errorf("identity %q with action %s", e.Identity, e.Action)
			}
		})
	}
}

func TestServiceThatLeadsBackToThePodItselfIsDirect(t *testing.T) {
	a := routing([]policy.PeerAuthentication{{Namespace: "web", Name: "on", Mode: policy.Strict}}, nil)
	a.snapshot.ServiceByAddress(netip.MustParseAddrPort(serviceAddress + ":80")).Ports[0].Endpoints = []netip.AddrPort{netip.MustParseAddrPort("10.1.0.1:8080")}
	answer, _ := a.resolve(destination{clientID, netip.MustParseAddrPort(serviceAddress + ":80")})
	if len(answer.Endpoints) != 1 || answer.Endpoints[0].Action != control.Action_ACTION_DIRECT {
		t.Errorf("got %v", answer)
	}
}

func TestRouteWithoutEndpointSaysWhy(t *testing.T) {
	a := routing(nil, nil)
	for _, to := range []string{serviceAddress + ":81", serviceAddress + ":9"} {
		answer, known := a.resolve(destination{clientID, netip.MustParseAddrPort(to)})
		if len(answer.Endpoints) != 0 || answer.Reason == "" || !known {
			t.Errorf("%s: endpoints %v, reason %q, known %v", to, answer.Endpoints, answer.Reason, known)
		}
	}
}

func TestRouteForUnknownWorkloadOpensNothing(t *testing.T) {
	answer, _ := routing(nil, nil).resolve(destination{99, netip.MustParseAddrPort(legacyAddress + ":80")})
	if len(answer.Endpoints) != 0 {
		t.Errorf("got endpoints %v", answer.Endpoints)
	}
}

func TestUnknownDestinationIsNotAnsweredAtOnce(t *testing.T) {
	_, known := routing(nil, nil).resolve(destination{clientID, netip.MustParseAddrPort("10.1.0.99:80")})
	if known {
		t.Error("an address that nothing explains counts as known")
	}
}

func TestSampleIsBoundedAndStable(t *testing.T) {
	var all []netip.AddrPort
	for i := range 5000 {
		all = append(all, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80))
	}
	first, second := sample(all), sample(all)
	if len(first) != maxEndpoints {
		t.Fatalf("%d endpoints, want %d", len(first), maxEndpoints)
	}
	for i := range first {
		if first[i] != second[i] {
			t.Fatal("two samples of one list differ")
		}
	}
}

func TestExternalAddressIsTheServicesForItsPortsOnly(t *testing.T) {
	a := routing(nil, nil)
	x := source.NewIndex("")
	node := netip.MustParseAddr("192.0.2.1")
	x.SetService(&source.Service{Namespace: "web", Name: "edge", External: []netip.Addr{node}, Ports: []source.ServicePort{{Port: 80}}})
	a.snapshot = x.Snapshot()
	for port, want := range map[uint16]int{80: 0, 10250: 1} {
		answer, _ := a.resolve(destination{clientID, netip.AddrPortFrom(node, port)})
		if len(answer.Endpoints) != want {
			t.Errorf("port %d: %d endpoints, want %d: %v", port, len(answer.Endpoints), want, answer)
		}
	}
}

// TestPodOfAnotherNodeIsReachedAsItsNodeAnnounced is about the annotation that data planes read of each other.
func TestPodOfAnotherNodeIsReachedAsItsNodeAnnounced(t *testing.T) {
	ambient := map[string]string{"istio.io/dataplane-mode": "ambient"}
	for name, tc := range map[string]struct {
		redirection source.Redirection
		labels      map[string]string
		mode        policy.Mode
		want        bool
	}{
		"announced":                         {source.RedirectionEnabled, ambient, policy.Permissive, true},
		"announced without a label":         {source.RedirectionEnabled, nil, policy.Permissive, true},
		"wished for, not announced":         {source.RedirectionAbsent, ambient, policy.Permissive, false},
		"STRICT, wished for, not announced": {source.RedirectionAbsent, ambient, policy.Strict, true},
		"STRICT, neither":                   {source.RedirectionAbsent, nil, policy.Strict, false},
		"source that cannot tell":           {source.RedirectionUnknown, ambient, policy.Permissive, true},
	} {
		t.Run(name, func(t *testing.T) {
			a := routing(nil, nil)
			pod := &source.Pod{Namespace: "far", Name: "p", Labels: tc.labels, Redirection: tc.redirection}
			r := a.router()
			if got := r.inMesh(pod, tc.mode); got != tc.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestOnlyTouchedRoutesAreLookedAtAgain(t *testing.T) {
	a := routing(nil, nil)
	to := destination{clientID, netip.MustParseAddrPort(serviceAddress + ":80")}
	answer, _ := a.resolve(to)
	address := netip.MustParseAddr
	for name, tc := range map[string]struct {
		changes source.Changes
		touched touched
		want    bool
	}{
		"nothing":             {},
		"another address":     {changes: source.Changes{Addresses: map[netip.Addr]struct{}{address("10.9.9.9"): {}}}},
		"another namespace":   {changes: source.Changes{Policies: map[string]struct{}{"old": {}}}},
		"the Service":         {changes: source.Changes{Addresses: map[netip.Addr]struct{}{address(serviceAddress): {}}}, want: true},
		"its endpoint":        {changes: source.Changes{Addresses: map[netip.Addr]struct{}{address(serverAddress): {}}}, want: true},
		"endpoint's policies": {changes: source.Changes{Policies: map[string]struct{}{"web": {}}}, want: true},
		"endpoint's labels":   {changes: source.Changes{Namespaces: map[string]struct{}{"web": {}}}, want: true},
		"endpoint enrolled":   {touched: touched{addresses: map[netip.Addr]struct{}{address(serverAddress): {}}}, want: true},
		"the client":          {touched: touched{workloads: map[uint64]struct{}{clientID: {}}}, want: true},
	} {
		if got := a.routeTouched(to, answer, &tc.changes, &tc.touched); got != tc.want {
			t.Errorf("%s: got %v, want %v", name, got, tc.want)
		}
	}
}
