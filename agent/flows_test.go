package agent

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/datapath"
	"github.com/culvert-mesh/culvert/agent/observe"
	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/policy"
	"github.com/culvert-mesh/culvert/tunnel/control"
)

const (
	cartID    = 11
	cartIP    = "10.1.0.1"
	frontIP   = "10.1.0.2" // enrolled, of another node
	legacyIP  = "10.1.0.3" // not enrolled
	lateIP    = "10.1.0.4" // enrolled, of another node
	clusterIP = "10.2.0.1"
)

// observed is an agent with one enrolled pod, shop/cart, whose loop runs until the test ends.
func observed(t *testing.T, policies []policy.PeerAuthentication, rules []policy.DestinationRule) *observer {
	t.Helper()
	address := func(s string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(s)} }
	x := source.NewIndex("n1")
	for _, name := range []string{"shop", "web", "old", "istio-system"} {
		x.SetNamespace(&source.Namespace{Name: name})
	}
	cart := &source.Pod{Namespace: "shop", Name: "cart-1", ServiceAccount: "cart", Node: "n1", Addresses: address(cartIP), ContainerPorts: []uint16{8080, 9090},
		Labels: map[string]string{"app": "cart", "istio.io/dataplane-mode": "ambient"}}
	x.SetPod(cart)
	for _, p := range []source.Pod{
		{Namespace: "web", Name: "front-1", ServiceAccount: "front", Node: "n2", Addresses: address(frontIP), Redirection: source.RedirectionEnabled},
		{Namespace: "web", Name: "late-1", ServiceAccount: "late", Node: "n2", Addresses: address(lateIP), Redirection: source.RedirectionEnabled},
		{Namespace: "old", Name: "legacy-1", ServiceAccount: "default", Node: "n2", Addresses: address(legacyIP), Redirection: source.RedirectionAbsent},
		{Namespace: "shop", Name: "till-1", ServiceAccount: "till", Node: "n1", Addresses: address("10.1.0.8"), Labels: map[string]string{"istio.io/dataplane-mode": "ambient"}},
		{Namespace: "shop", Name: "plain-1", ServiceAccount: "plain", Node: "n1", Addresses: address("10.1.0.9")},
	} {
		x.SetPod(&p)
	}
	x.SetService(&source.Service{Namespace: "shop", Name: "cart", Addresses: address(clusterIP), Ports: []source.ServicePort{
		{Port: 80, Endpoints: []netip.AddrPort{netip.MustParseAddrPort(cartIP + ":8080")}}}})
	x.SetPolicies("shop", policies)
	x.SetRules("web", rules)
	a := &Agent{
		Options:      Options{Node: "n1", RootNamespace: "istio-system", MeshRanges: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}},
		log:          slog.New(slog.DiscardHandler),
		events:       make(chan func(), eventBacklog),
		snapshot:     x.Snapshot(),
		policies:     policy.NewSet("istio-system", policies),
		rules:        policy.NewRuleSet("istio-system", "", rules),
		unenrollable: map[string]string{"shop/till-1": "its network namespace was not found"},
	}
	w := &workload{id: cartID, pod: cart}
	w.decision = a.policies.Effective(policyWorkload(cart))
	w.setModes(w.decision.Modes())
	a.workloads, a.byPod = map[uint64]*workload{cartID: w}, map[string]*workload{"shop/cart-1": w}
	ctx, cancel := context.WithCancel(context.Background())
	a.ctx = ctx
	done := make(chan struct{})
	go func() { // the loop, without the tick: that looks at network namespaces, of which there are none
		defer close(done)
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
		cancel()
		<-done
	})
	return newObserver(a, filepath.Join(t.TempDir(), "observed.json"))
}

func flow(number uint64, from, to string, port uint32, how control.Carried) *control.Flow {
	return &control.Flow{Number: number, Workload: cartID, Inbound: true, Carried: how,
		SourceAddress: netip.MustParseAddr(from).AsSlice(), SourcePort: 40000, DestinationAddress: netip.MustParseAddr(to).AsSlice(), DestinationPort: port,
		OpenedUnixNanoseconds: time.Now().Add(-time.Second).UnixNano(), ClosedUnixNanoseconds: time.Now().UnixNano()}
}

// settled waits until the loop has done what it was given.
func settled(t *testing.T, o *observer) {
	t.Helper()
	if err := (inspector{agent: o.agent}).inspect(t.Context(), func(*Agent) error { return nil }); err != nil {
		t.Fatal(err)
	}
}

func TestFlowsOfATunnelAreCompleted(t *testing.T) {
	o := observed(t, nil, nil)
	mtls := flow(1, frontIP, cartIP, 8080, control.Carried_CARRIED_MTLS)
	mtls.SourceIdentity = "spiffe://cluster.local/ns/web/sa/front"
	bad := flow(2, frontIP, cartIP, 8080, control.Carried_CARRIED_MTLS)
	bad.SourceAddress = []byte{1, 2, 3}
	unknown := flow(3, frontIP, cartIP, 8080, control.Carried(99))
	rude := flow(4, "203.0.113.9", cartIP, 8080, control.Carried_CARRIED_FAILED)
	rude.Reason = "\xff" + string(make([]byte, 2*maxReason))
	o.take(new(session), &control.Flows{Flows: []*control.Flow{mtls, bad, unknown, rude}, Lost: 5})
	settled(t, o)
	l, err := o.Flows(t.Context(), 0, 0)
	if err != nil || len(l.Flows) != 2 || l.Lost != 7 || l.Node != "n1" {
		t.Fatalf("%+v, %v", l, err)
	}
	e := l.Flows[0]
	if e.Source.Workload != "web/front-1" || e.Destination.Workload != "shop/cart-1" || e.Carried != observe.MTLS || e.Opened.IsZero() {
		t.Errorf("event %+v", e)
	}
	if got := l.Flows[1]; len(got.Reason) > maxReason+3 || got.Source.Workload != "" {
		t.Errorf("%d bytes of reason, source %+v", len(got.Reason), got.Source)
	}
	seen := o.memory.Observations(time.Time{})
	i := slices.IndexFunc(seen, func(x observe.Observation) bool { return x.Carried == observe.MTLS })
	if i < 0 || seen[i].Peer.Identity != mtls.SourceIdentity || seen[i].Peer.ServiceAccount != "front" || seen[i].Port != 8080 {
		t.Errorf("observed %+v", seen)
	}
}

func TestAClientOfTheSameNodeIsSeenAtTheServer(t *testing.T) {
	o := observed(t, nil, nil)
	local := flow(7, "10.1.0.8", cartIP, 8080, control.Carried_CARRIED_SAME_NODE)
	local.Inbound, local.Workload, local.SourceIdentity = false, 99, "spiffe://cluster.local/ns/shop/sa/till"
	remote := flow(8, "10.1.0.8", frontIP, 8080, control.Carried_CARRIED_SAME_NODE) // not of this node, whatever the tunnel says
	remote.Inbound = false
	o.take(new(session), &control.Flows{Flows: []*control.Flow{local, remote}})
	settled(t, o)
	seen := o.memory.Observations(time.Time{})
	if len(seen) != 1 || seen[0].Carried != observe.SameNode || seen[0].Peer.Identity != local.SourceIdentity || seen[0].Workload.Namespace != "shop" {
		t.Errorf("observed %+v", seen)
	}
}

func TestFlowsThatFindNoRoomAreCounted(t *testing.T) {
	a := &Agent{log: slog.New(slog.DiscardHandler), events: make(chan func())}
	o := newObserver(a, "")
	o.take(new(session), &control.Flows{Flows: make([]*control.Flow, 3), Lost: 1})
	if got := o.memory.LostEvents(); got != 4 {
		t.Errorf("%d lost", got)
	}
}

// A tunnel that was taken over cannot keep the loop busy with flows.
func TestFlowsOfATunnelAreBounded(t *testing.T) {
	a := &Agent{log: slog.New(slog.DiscardHandler), events: make(chan func(), 1000)}
	o, s := newObserver(a, ""), new(session)
	o.take(s, &control.Flows{Flows: make([]*control.Flow, maxFlows+1)})
	if len(a.events) != 0 {
		t.Error("a message that is too large is looked at")
	}
	for range 100 {
		o.take(s, &control.Flows{Flows: make([]*control.Flow, 1)})
	}
	if len(a.events) != maxFlowing || o.memory.LostEvents() != maxFlows+1+100-maxFlowing {
		t.Errorf("%d messages wait for the loop, %d flows lost", len(a.events), o.memory.LostEvents())
	}
}

func TestRefusalsOfTheKernelNameTheirPolicy(t *testing.T) {
	o := observed(t, []policy.PeerAuthentication{{Namespace: "shop", Name: "strict", Mode: policy.Strict}}, nil)
	err := (inspector{agent: o.agent}).inspect(t.Context(), func(*Agent) error {
		r := datapath.Refusal{Cookie: cartID, Source: netip.MustParseAddrPort(legacyIP + ":4000"), Destination: netip.MustParseAddrPort(cartIP + ":8080"), Suppressed: 4}
		o.refused(r)
		r.Cookie = 99 // of no pod
		o.refused(r)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := o.Flows(t.Context(), 0, time.Second)
	if err != nil || len(l.Flows) != 1 {
		t.Fatalf("%+v, %v", l, err)
	}
	e := l.Flows[0]
	if e.Carried != observe.Refused || e.Policy != "shop/strict" || e.Source.Workload != "old/legacy-1" || e.Count != 0 {
		t.Errorf("event %+v", e)
	}
}

// kernelCounts are what the kernel would tell.
type kernelCounts []datapath.PlaintextCount

func (k kernelCounts) Plaintext() ([]datapath.PlaintextCount, error) { return k, nil }

func (k kernelCounts) OpenPlaintext(*os.File, uint64) ([]datapath.OpenPlaintext, error) {
	return nil, nil
}

func plaintextFrom(address string, port uint16, count uint64) datapath.PlaintextCount {
	return datapath.PlaintextCount{Cookie: cartID, Port: port, Peer: netip.MustParseAddr(address), Count: count, LastNanoseconds: 1 << 62}
}

func TestReadinessSaysWhoCameInPlaintextAndWhy(t *testing.T) {
	own, err := ownAddresses()
	if err != nil {
		t.Fatal(err)
	}
	disabled := []policy.DestinationRule{{Namespace: "web", Name: "plain", Host: "cart.shop.svc.cluster.local", TLS: &policy.ClientTLS{Mode: policy.TLSDisable}}}
	off := []policy.PeerAuthentication{{Namespace: "shop", Name: "off", Mode: policy.Disable}}
	tests := map[string]struct {
		from     string
		policies []policy.PeerAuthentication
		rules    []policy.DestinationRule
		late     bool // enrolled after it came
		kind     observe.PeerKind
		name     string
		enrolled bool
		why      string
	}{
		"a pod outside of the mesh":  {from: legacyIP, kind: observe.PeerPod, name: "old/legacy-1"},
		"an address elsewhere":       {from: "203.0.113.9", kind: observe.PeerOutside},
		"a pod that is gone":         {from: "10.1.9.9", kind: observe.PeerUnknown},
		"by a DestinationRule":       {from: frontIP, rules: disabled, kind: observe.PeerPod, name: "web/front-1", enrolled: true, why: "DestinationRule web/plain: trafficPolicy.tls is DISABLE: plaintext (Service shop/cart)"},
		"the port is DISABLE":        {from: frontIP, policies: off, kind: observe.PeerPod, name: "web/front-1", enrolled: true, why: "the port is DISABLE by shop/off: pods of the mesh use plaintext"},
		"nothing explains it":        {from: frontIP, kind: observe.PeerPod, name: "web/front-1", enrolled: true, why: "nothing in force now explains it: a policy or DestinationRule that is gone since, or a connection from before it was enrolled"},
		"before the pod was in mesh": {from: lateIP, late: true, kind: observe.PeerPod, name: "web/late-1", enrolled: true, why: "it was not enrolled when it came last"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := observed(t, tt.policies, tt.rules)
			if tt.late {
				o.agent.post(func() { o.relist(source.RedirectionAbsent) })
			}
			if _, _, err := o.poll(t.Context(), kernelCounts{plaintextFrom(tt.from, 8080, 3), {Cookie: 99, Port: 1, Peer: netip.MustParseAddr(legacyIP), Count: 1}}); err != nil {
				t.Fatal(err)
			}
			if tt.late {
				o.agent.post(func() { o.relist(source.RedirectionEnabled) })
			}
			r, err := o.Readiness(t.Context(), "shop", time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Workloads) != 1 || len(r.Workloads[0].Ports) != 2 || len(r.Workloads[0].Ports[0].Peers) != 1 || r.Workloads[0].Ports[1].Port != 9090 {
				t.Fatalf("workloads %+v", r.Workloads)
			}
			p := r.Workloads[0].Ports[0].Peers[0]
			if p.Kind != tt.kind || p.Name != tt.name || p.EnrolledNow != tt.enrolled || p.Why != tt.why || p.Count != 3 || time.Since(p.Last) > time.Minute {
				t.Errorf("peer %+v, want %s %s: %q", p, tt.kind, tt.name, tt.why)
			}
			if len(r.Policies) != len(tt.policies) || len(r.NodeAddresses) != len(own) {
				t.Errorf("policies %+v, addresses of the node %v", r.Policies, r.NodeAddresses)
			}
		})
	}
}

func TestReadinessNamesOtherNodesWithPodsOfTheWorkload(t *testing.T) {
	o := observed(t, nil, nil)
	cart := *o.agent.workloads[cartID].pod
	pod := func(name, node, address string, r source.Redirection, labels map[string]string) source.Pod {
		p := cart
		p.Name, p.Node, p.Redirection, p.Labels, p.Addresses = name, node, r, labels, []netip.Addr{netip.MustParseAddr(address)}
		return p
	}
	successor := maps.Clone(cart.Labels)
	successor["pod-template-hash"] = "77"
	o.agent.post(func() {
		o.agent.snapshot = source.NewSnapshot("n1", source.Contents{Namespaces: []source.Namespace{{Name: "shop"}}, Pods: []source.Pod{
			cart,
			pod("cart-2", "n2", "10.1.0.21", source.RedirectionEnabled, successor),
			pod("cart-3", "n3", "10.1.0.31", source.RedirectionAbsent, cart.Labels), // no policy applies to it
			pod("till-2", "n4", "10.1.0.41", source.RedirectionEnabled, map[string]string{"app": "till"}),
		}})
	})
	v, _, err := o.poll(t.Context(), kernelCounts{})
	if err != nil {
		t.Fatal(err)
	}
	o.memory.Elsewhere(v.elsewhere(o.memory.Watched()))
	r, err := o.Readiness(t.Context(), "shop", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Workloads) != 1 || !slices.Equal(slices.Collect(maps.Keys(r.Workloads[0].Elsewhere)), []string{"n2"}) || !slices.Equal(r.EnrolledOn, []string{"n1", "n2", "n4"}) {
		t.Errorf("workloads %+v", r.Workloads)
	}
}

// relist has the pod web/late-1 be, or not be, in the mesh. It runs on the loop.
func (o *observer) relist(r source.Redirection) {
	late := source.Pod{Namespace: "web", Name: "late-1", ServiceAccount: "late", Node: "n2", Addresses: []netip.Addr{netip.MustParseAddr(lateIP)}, Redirection: r}
	cart := *o.agent.workloads[cartID].pod
	o.agent.snapshot = source.NewSnapshot("n1", source.Contents{Namespaces: []source.Namespace{{Name: "shop"}}, Pods: []source.Pod{cart, late}})
}

func TestReadinessOfOtherNamespacesAndPodsOutsideTheMesh(t *testing.T) {
	o := observed(t, nil, nil)
	r, err := o.Readiness(t.Context(), "shop", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	want := []admin.NotEnrolled{
		{Pod: "shop/plain-1", Reason: "neither namespace nor pod asks for it"},
		{Pod: "shop/till-1", Reason: "its network namespace was not found", Wanted: true},
	}
	if !slices.Equal(r.NotEnrolled, want) {
		t.Errorf("not enrolled %+v", r.NotEnrolled)
	}
	for namespace, want := range map[string][]string{"": {"shop"}, "old": {"old"}, "nowhere": {"shop"}} {
		r, err := o.Readiness(t.Context(), namespace, time.Hour)
		if err != nil || !slices.Equal(r.KnownNames, want) || namespace != "" && len(r.Workloads) != 0 {
			t.Errorf("%q: names %v, workloads %+v, %v", namespace, r.KnownNames, r.Workloads, err)
		}
	}
}

func TestObservationsSurviveTheAgent(t *testing.T) {
	o := observed(t, nil, nil)
	path := filepath.Join(t.TempDir(), "observed.json")
	counts := kernelCounts{plaintextFrom(legacyIP, 8080, 3)}
	for range 3 { // the kernel's counts survive, too
		o = &observer{agent: o.agent, memory: newObserver(o.agent, path).memory}
		if _, _, err := o.poll(t.Context(), counts); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := o.follow(ctx); err != nil { // the end saves
			t.Fatal(err)
		}
	}
	if got := o.memory.Observations(time.Time{}); len(got) != 1 || got[0].Count != 3 {
		t.Errorf("observed %+v", got)
	}
}

func TestBeforeTheFirstSnapshotNothingIsKnown(t *testing.T) {
	o := observed(t, nil, nil)
	o.agent.post(func() { o.agent.snapshot = nil })
	if _, _, err := o.poll(t.Context(), kernelCounts{plaintextFrom(legacyIP, 8080, 3)}); err != nil {
		t.Error(err)
	}
	if got := o.memory.Observations(time.Time{}); len(got) != 0 {
		t.Errorf("observed %+v", got)
	}
	if _, err := o.Readiness(t.Context(), "", time.Hour); err == nil {
		t.Error("an answer")
	}
	r, err := o.Bugreport(t.Context())
	if err != nil || len(r.Errors) != 2 || len(r.Workloads) != 1 {
		t.Errorf("report %+v, %v", r, err)
	}
}

func TestBugreportHasThePoliciesAsTheAgentHasThem(t *testing.T) {
	o := observed(t, []policy.PeerAuthentication{{Namespace: "shop", Name: "p", Mode: policy.Strict, Ports: map[uint16]policy.Mode{9090: policy.Disable}, Selector: map[string]string{"app": "cart"}}},
		[]policy.DestinationRule{{Namespace: "web", Name: "r", Host: "cart"}})
	r, err := o.Bugreport(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Policies) != 1 || r.Policies[0].Ports[9090] != "DISABLE" || len(r.Rules) != 1 || r.Snapshot.Pods != 6 {
		t.Errorf("report %+v", r)
	}
	w := r.Workloads[0]
	if w.Mode != "STRICT" || w.Ports[9090] != "DISABLE by shop/p" || w.Policy != "shop/p" {
		t.Errorf("workload %+v", w)
	}
}
