package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/observe"
	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/policy"
)

func addresses(all ...string) []netip.Addr {
	var parsed []netip.Addr
	for _, a := range all {
		parsed = append(parsed, netip.MustParseAddr(a))
	}
	return parsed
}

// cluster is a shop in the mesh and a legacy namespace outside of it, on two nodes; this one is "here".
func cluster() source.Contents {
	endpoints := func(all ...string) []netip.AddrPort {
		var parsed []netip.AddrPort
		for _, a := range all {
			parsed = append(parsed, netip.MustParseAddrPort(a))
		}
		return parsed
	}
	return source.Contents{
		Namespaces: []source.Namespace{{Name: "shop", Labels: map[string]string{"istio.io/dataplane-mode": "ambient"}}, {Name: "old"}},
		Pods: []source.Pod{
			{Namespace: "shop", Name: "cart-7f9c-1", Node: "here", ServiceAccount: "cart", Addresses: addresses("10.1.0.1"), Labels: map[string]string{"app": "cart"},
				Ports: map[string]uint16{"http": 8080}, ContainerPorts: []uint16{8080, 9090}, Redirection: source.RedirectionEnabled},
			{Namespace: "shop", Name: "till-1", Node: "there", ServiceAccount: "till", Addresses: addresses("10.1.1.1"), Labels: map[string]string{"app": "till"}, Redirection: source.RedirectionEnabled},
			{Namespace: "shop", Name: "late", Node: "here", ServiceAccount: "late", Addresses: addresses("10.1.0.3"), ContainerPorts: []uint16{80}, Redirection: source.RedirectionAbsent},
			{Namespace: "shop", Name: "host", Node: "here", HostNetwork: true, Addresses: addresses("192.0.2.1")},
			{Namespace: "old", Name: "legacy", Node: "here", ServiceAccount: "default", Addresses: addresses("10.1.0.2"), ContainerPorts: []uint16{80}, Redirection: source.RedirectionAbsent},
			{Namespace: "old", Name: "till-1", Node: "there", ServiceAccount: "default", Addresses: addresses("10.1.1.2"), Redirection: source.RedirectionAbsent},
		},
		Services: []source.Service{
			{Namespace: "shop", Name: "cart", Addresses: addresses("10.2.0.1"), Ports: []source.ServicePort{
				{Name: "web", Port: 80, Target: "http", Endpoints: endpoints("10.1.0.1:8080")}, {Name: "idle", Port: 81, Target: "81"}}},
			{Namespace: "shop", Name: "till", Addresses: addresses("10.2.0.2"), Ports: []source.ServicePort{
				{Port: 80, Target: "8080", Endpoints: endpoints("10.1.1.1:8080", "10.1.1.2:8080")}}},
			{Namespace: "old", Name: "legacy", Addresses: addresses("10.2.0.3"), Ports: []source.ServicePort{
				{Port: 80, Target: "80", Endpoints: endpoints("10.1.0.2:80")}}},
			{Namespace: "shop", Name: "peers", Ports: []source.ServicePort{{Port: 7000, Target: "7000", Endpoints: endpoints("10.1.1.1:7000", "10.1.0.1:7000")}}},
		},
	}
}

// answering is an agent on "here" whose loop runs, with shop/cart-7f9c-1 enrolled.
func answering(t *testing.T, c source.Contents) (*Agent, inspector) {
	t.Helper()
	return answeringBy(t, c, newCounting(t))
}

func answeringBy(t *testing.T, c source.Contents, issuer identity.Issuer) (*Agent, inspector) {
	t.Helper()
	a := &Agent{
		Options: Options{Node: "here", TrustDomain: domain, RootNamespace: "istio-system", Issuer: issuer, Version: "test"},
		log:     slog.New(slog.DiscardHandler), events: make(chan func(), 16),
		workloads: map[uint64]*workload{}, byPod: map[string]*workload{}, unenrollable: map[string]string{}, reported: map[string]string{},
		wanted: map[string]*source.Pod{}, ended: map[string]ending{}, sessions: map[*session]struct{}{{queue: make(chan outgoing, 100)}: {}},
	}
	ctx, cancel := context.WithCancel(context.Background())
	a.ctx = ctx
	a.metrics = a.newMetrics()
	a.keeper = a.newKeeper()
	a.keeper.Begin()
	a.snapshot = source.NewSnapshot("here", c)
	a.policies = policy.NewSet("istio-system", c.Policies)
	a.rules = policy.NewRuleSet("istio-system", "", c.Rules)
	a.wanted = a.wantedPods()
	if pod := a.snapshot.LocalPod("shop/cart-7f9c-1"); pod != nil {
		who := identity.Workload{ID: principal("cart").ID, Namespace: "shop", Pod: pod.Name}
		w := &workload{id: 1, pod: pod, listed: pod, identity: who.ID}
		w.decision = a.policies.Effective(policyWorkload(pod))
		w.setModes(w.decision.Modes())
		a.workloads[1], a.byPod[pod.Ref()] = w, w
		a.keeper.Use(who)
		if ready := a.keeper.Ready(who.ID); ready != nil {
			<-ready
		}
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case event := <-a.events:
				event()
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() {
		a.keeper.Close()
		cancel()
		<-ended
	})
	return a, inspector{agent: a}
}

// onLoop changes what only the loop may.
func onLoop(t *testing.T, i inspector, change func(*Agent)) {
	t.Helper()
	if err := i.inspect(t.Context(), func(a *Agent) error {
		change(a)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func strict(namespace, name string, selector map[string]string) policy.PeerAuthentication {
	return policy.PeerAuthentication{Namespace: namespace, Name: name, Mode: policy.Strict, Selector: selector}
}

func destinationRule(namespace, name, host string, mode policy.TLSMode) policy.DestinationRule {
	return policy.DestinationRule{Namespace: namespace, Name: name, Host: host, TLS: &policy.ClientTLS{Mode: mode}}
}

func hasText(all []string, part string) bool {
	return slices.ContainsFunc(all, func(s string) bool { return strings.Contains(s, part) })
}

func TestDescribePod(t *testing.T) {
	c := cluster()
	c.Policies = []policy.PeerAuthentication{
		strict("shop", "all", nil),
		{Namespace: "shop", Name: "cart", Selector: map[string]string{"app": "cart"}, Created: time.Unix(1, 0),
			Ports: map[uint16]policy.Mode{8080: policy.Permissive, 7777: policy.Disable}},
		{Namespace: "shop", Name: "cart-too", Selector: map[string]string{"app": "cart"}, Created: time.Unix(2, 0), Mode: policy.Disable},
		strict("istio-system", "odd", map[string]string{"app": "cart"}),
	}
	c.Rules = []policy.DestinationRule{
		destinationRule("shop", "plain", "cart.shop.svc.cluster.local", policy.TLSDisable),
		destinationRule("old", "mutual", "cart.shop.svc.cluster.local", policy.TLSIstioMutual),
	}
	_, i := answering(t, c)
	d, err := i.DescribePod(t.Context(), "shop/cart-7f9c-1")
	if err != nil {
		t.Fatal(err)
	}
	if !d.Enrolled || d.Identity != "spiffe://cluster.local/ns/shop/sa/cart" || d.Node != "here" || d.Certificate == nil || len(d.Certificate.Chain) == 0 {
		t.Errorf("enrolled %v as %q on %s, certificate %v", d.Enrolled, d.Identity, d.Node, d.Certificate)
	}
	if d.Default.Mode != "STRICT" || d.Default.Policy != "shop/all" {
		t.Errorf("default %+v", d.Default)
	}
	want := map[uint16]string{7000: "STRICT", 7777: "DISABLE", 8080: "PERMISSIVE", 9090: "STRICT"}
	for _, p := range d.Ports {
		if want[p.Port] != p.Mode || p.InForce != "" {
			t.Errorf("port %+v, want %s", p, want[p.Port])
		}
		delete(want, p.Port)
	}
	if len(want) > 0 {
		t.Errorf("ports %v are missing", want)
	}
	if len(d.Levels) != 2 || d.Levels[1].Winner != "shop/cart" || !slices.Equal(d.Levels[1].Losers, []string{"shop/cart-too"}) || d.Ignored[0] != "istio-system/odd" {
		t.Errorf("levels %+v, ignored %v", d.Levels, d.Ignored)
	}
	if len(d.Services) != 2 || d.Services[0].Service != "shop/cart" || len(d.Services[0].Ports) != 1 {
		t.Fatalf("Services %+v", d.Services)
	}
	rules := d.Services[0].Ports[0].Rules
	if len(rules) != 2 || rules[0].Callers != "all others" || rules[0].Action != "plaintext" || rules[1].Callers != "namespace old" || rules[1].Action != "mutual" {
		t.Errorf("rules %+v", rules)
	}
	if !hasText(d.Warnings, "names port 7777, which no container declares") || len(d.Warnings) != 1 {
		t.Errorf("warnings %q", d.Warnings)
	}
}

func TestDescribePodThatIsNotEnrolled(t *testing.T) {
	c := cluster()
	c.Policies = []policy.PeerAuthentication{strict("istio-system", "mesh", nil)}
	c.Pods[4].Annotations = map[string]string{"traffic.sidecar.istio.io/excludeInboundPorts": "80"}
	_, i := answering(t, c)
	onLoop(t, i, func(a *Agent) { a.unenrollable["shop/late"] = "its address is another's" })
	for pod, want := range map[string]struct{ reason, warning string }{
		"shop/late":  {"namespace label", "is to be enrolled and is not: its address is another's"},
		"shop/host":  {"hostNetwork", "STRICT of it, which nobody enforces"},
		"old/legacy": {"neither namespace nor pod asks", "excludeInboundPorts is a sidecar's"},
		"legacy":     {"neither namespace nor pod asks", "STRICT of it, which nobody enforces"},
	} {
		d, err := i.DescribePod(t.Context(), pod)
		if err != nil {
			t.Fatal(err)
		}
		if d.Enrolled || d.Identity != "" || d.Certificate != nil || !strings.Contains(d.Reason, want.reason) || !hasText(d.Warnings, want.warning) {
			t.Errorf("%s: enrolled %v because %q, warnings %q", pod, d.Enrolled, d.Reason, d.Warnings)
		}
	}
}

func TestNamesThatAreNotKnown(t *testing.T) {
	_, i := answering(t, cluster())
	for name, want := range map[string]string{
		"shop/cart-7f9c-0": `pods "cart-7f9c-0" not found in namespace "shop"; did you mean shop/cart-7f9c-1?`,
		"cart-7f9c-0":      `not found in any namespace; did you mean shop/cart-7f9c-1?`,
		"till-1":           `pods "till-1" found in several namespaces; say which of old/till-1, shop/till-1`,
		"shop/till-1":      "pod shop/till-1 is on node there, not on here",
		"nobody":           `pods "nobody" not found in any namespace`,
		"none/legacy":      `pods "legacy" not found in namespace "none"; did you mean old/legacy?`,
		"none/nobody":      `pods "nobody" not found in namespace "none"`,
		"-/":               "not found in",
	} {
		_, err := i.DescribePod(t.Context(), name)
		if !errors.Is(err, admin.ErrUnknownWorkload) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	if _, err := i.DescribeService(t.Context(), "shop/kart"); !errors.Is(err, admin.ErrUnknownWorkload) || !strings.Contains(err.Error(), "did you mean shop/cart, shop/peers, shop/till?") {
		t.Errorf("Service: %v", err)
	}
}

func TestWhoConnectedIsCountedByHow(t *testing.T) {
	now := time.Now()
	got := lately([]observe.Edge{
		{Source: "shop/near", Destination: "shop/cart", Port: 80, Inbound: true, Carried: map[observe.Carried]observe.Tally{
			observe.SameNode: {Count: 5, Last: now}, observe.MTLS: {Count: 2, Last: now}}},
		{Source: "shop/near", Destination: "shop/cart", Port: 80, Carried: map[observe.Carried]observe.Tally{observe.SameNode: {Count: 5}}}, // near's own account
		{Source: "shop/far", Destination: "shop/till", Port: 80, Inbound: true, Carried: map[observe.Carried]observe.Tally{observe.MTLS: {Count: 1}}},
	}, "shop/cart")
	want := []admin.RecentPeer{
		{Peer: "shop/near", Port: 80, Carried: "mtls", Connections: 2, Last: now}, {Peer: "shop/near", Port: 80, Carried: "same-node", Connections: 5, Last: now}}
	if !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
}

func TestDescribeService(t *testing.T) {
	c := cluster()
	c.Policies = []policy.PeerAuthentication{strict("istio-system", "mesh", nil)}
	c.Rules = []policy.DestinationRule{destinationRule("shop", "mutual", "*.svc.cluster.local", policy.TLSIstioMutual),
		{Namespace: "old", Name: "some", Host: "till.shop.svc.cluster.local", TLS: &policy.ClientTLS{Mode: policy.TLSDisable}, Selector: map[string]string{"app": "x"}}}
	_, i := answering(t, c)
	d, err := i.DescribeService(t.Context(), "shop/till")
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Ports) != 1 || d.Ports[0].EndpointsCount != 2 || d.Ports[0].InMesh != 1 || d.Ports[0].Endpoints[0].Pod != "shop/till-1" {
		t.Errorf("ports %+v", d.Ports)
	}
	if rules := d.Ports[0].Rules; len(rules) != 2 || rules[1].Callers != "namespace old, labels app=x" {
		t.Errorf("rules %+v", rules)
	}
	for _, want := range []string{
		"a policy wants STRICT of 1 of 2 endpoints (such as old/till-1), which nobody enforces",
		"1 of 2 endpoints (such as old/till-1) are not in the mesh",
		"DestinationRule shop/mutual (callers: all others) wants mutual TLS of 1 of 2 endpoints (such as old/till-1) outside the mesh: refused",
		"DestinationRule old/some (callers: namespace old, labels app=x) sends plaintext to 1 of 2 endpoints (such as shop/till-1) in STRICT: refused",
	} {
		if !hasText(d.Warnings, want) {
			t.Errorf("no warning %q in %q", want, d.Warnings)
		}
	}
	if d, err = i.DescribeService(t.Context(), "cart"); err != nil || !hasText(d.Warnings, "shop/cart:81 has no ready endpoint") {
		t.Errorf("%v: %+v", err, d)
	}
	if d, err = i.DescribeService(t.Context(), "peers"); err != nil || !d.Headless || len(d.Ports[0].Endpoints) != 2 {
		t.Errorf("%v: %+v", err, d)
	}
}

func TestRulesForCallersOfOtherNamespaces(t *testing.T) {
	c := cluster()
	rule := destinationRule("shop", "plain", "till.shop.svc.cluster.local", policy.TLSDisable)
	rule.ExportTo = []string{"old"}
	c.Rules = []policy.DestinationRule{rule}
	_, i := answering(t, c)
	d, err := i.DescribeService(t.Context(), "shop/till")
	if err != nil {
		t.Fatal(err)
	}
	if rules := d.Ports[0].Rules; len(rules) != 1 || rules[0].Callers != "namespace old" || rules[0].Rule != "shop/plain" {
		t.Errorf("rules %+v", rules)
	}
}

func TestWhoConnectedLately(t *testing.T) {
	now := time.Unix(1000, 0)
	tally := func(n uint64) observe.Tally { return observe.Tally{Count: n, Last: now} }
	edges := []observe.Edge{
		{Source: "shop/till-1", Destination: "shop/cart-1", Port: 8080, Inbound: true, Carried: map[observe.Carried]observe.Tally{observe.MTLS: tally(3), observe.Refused: tally(1)}},
		{Source: "shop/till-1", Destination: "shop/cart-1", Port: 8080, Carried: map[observe.Carried]observe.Tally{observe.MTLS: tally(3)}},
		{Source: "shop/cart-1", Destination: "shop/till-1", Port: 80, Inbound: true, Carried: map[observe.Carried]observe.Tally{observe.MTLS: tally(9)}},
	}
	want := []admin.RecentPeer{{Peer: "shop/till-1", Port: 8080, Carried: "mtls", Connections: 3, Last: now}, {Peer: "shop/till-1", Port: 8080, Carried: "refused", Connections: 1, Last: now}}
	if got := lately(edges, "shop/cart-1"); !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	for range 50 {
		edges = append(edges, edges[0])
	}
	if got := lately(edges, "shop/cart-1"); len(got) != maxListed {
		t.Errorf("%d of many", len(got))
	}
}

func TestAgentThatKnowsNothingYetSaysSo(t *testing.T) {
	_, i := answering(t, cluster())
	onLoop(t, i, func(a *Agent) { a.snapshot = nil })
	_, podErr := i.DescribePod(t.Context(), "shop/cart-7f9c-1")
	_, serviceErr := i.DescribeService(t.Context(), "shop/cart")
	_, canErr := i.Can(t.Context(), admin.Question{From: admin.Outside, To: "shop/cart", Service: true})
	for _, err := range []error{podErr, serviceErr, canErr} {
		if !errors.Is(err, errNoSnapshot) {
			t.Error(err)
		}
	}
	var s *standing
	onLoop(t, i, func(a *Agent) { s = a.standing() })
	if s.status.Ready || !hasText(problemsOf(&s.status), "has not read the cluster's state yet") {
		t.Errorf("%+v", s.status)
	}
}
