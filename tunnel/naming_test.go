package tunnel

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/tunnel/control"
	"github.com/culvert-mesh/culvert/tunnel/telemetry"
)

// TestNamed: what both ends of a connection are called on either node. Of a client of another node nothing is believed but
// its certificate.
func TestNamed(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	till := &control.Naming{Workload: "till-v2", Service: "till", Revision: "v2"}
	bank := &control.Naming{Workload: "bank-v1", Service: "bank", Revision: "v1"}
	const (
		from = `source_workload="till-v2",source_canonical_service="till",source_canonical_revision="v2",source_workload_namespace="default",` +
			`source_principal="spiffe://cluster.local/ns/default/sa/client",source_app="till",source_version="v2",source_cluster="east",`
		proved = `source_workload="client",source_canonical_service="client",source_canonical_revision="unknown",source_workload_namespace="default",` +
			`source_principal="spiffe://cluster.local/ns/default/sa/client",source_app="client",source_version="unknown",source_cluster="east",`
		service   = `destination_service="bank.shop.svc.cluster.test",destination_service_namespace="shop",destination_service_name="bank",`
		noService = `destination_service="unknown",destination_service_namespace="unknown",destination_service_name="unknown",`
		to        = `destination_workload="bank-v1",destination_canonical_service="bank",destination_canonical_revision="v1",destination_workload_namespace="default",` +
			`destination_principal="spiffe://cluster.local/ns/default/sa/server",destination_app="bank",destination_version="v1",destination_cluster="east",`
		rest = `request_protocol="tcp",response_flags="-",connection_security_policy=`
	)
	for name, test := range map[string]struct {
		prepare        func(c, s *node, app string) string
		client, server string // lines
	}{
		"mtls": {func(c, s *node, app string) string { return wire(t, ca, ca, c, s, app, "server", later()) },
			`{reporter="source",` + from + service + to + rest + `"mutual_tls"`, `{reporter="destination",` + proved + noService + to + rest + `"mutual_tls"`},
		"same node": {func(c, s *node, app string) string { return same(t, ca, c, app, "server", later()) },
			`{reporter="source",` + from + service + to + rest + `"none"`, ""},
		"same node, seen from the other end": {func(c, s *node, app string) string { return same(t, ca, c, app, "server", later()) },
			`{reporter="destination",` + from + service + to + rest + `"none"`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			app := application(t, "127.77.2.1")
			client, server := newNode(t, ca), newNode(t, ca)
			out := test.prepare(client, server, app)
			for _, n := range []*node{client, server} {
				n.messages[0].GetWelcome().Cluster, n.messages[0].GetWelcome().ClusterDomain = "east", "cluster.test"
				for _, m := range n.messages {
					if w := m.GetWorkload(); w != nil {
						w.Naming = map[uint64]*control.Naming{1: till, 2: bank}[w.GetId()]
					}
				}
				for _, r := range n.routes {
					r.Service, r.Endpoints[0].Naming, r.Endpoints[0].Workload = "shop/bank", bank, "default/pod-2"
				}
			}
			server.start()
			client.start()
			wantEcho(t, out)
			client.eventually(test.client, func() bool { return client.counts("1", "opened", test.client) })
			if test.server != "" {
				server.eventually(test.server, func() bool { return server.counts("1", "opened", test.server) })
			}
		})
	}
}

// TestLabelsOfWhomNobodyNamed: an agent that is older than names, and peers of whom there is only a certificate.
func TestLabelsOfWhomNobodyNamed(t *testing.T) {
	tn := newTunnel(t.Context(), t.Context(), Options{})
	must(t, tn.ids.welcome(&control.Welcome{TrustDomain: "cluster.local", TrustDomainAliases: []string{"old.test"}}))
	tn.cluster.Store(&cluster{id: "east", domain: "cluster.test"})
	till := func(domain string) telemetry.Party {
		return telemetry.PartyOf("spiffe://" + domain + "/ns/shop/sa/till")
	}
	here, alias := till("cluster.local"), till("old.test")
	here.Cluster, alias.Cluster = "east", "east"
	for name, test := range map[string]struct {
		party party
		want  telemetry.Party
	}{
		"nobody":                     {party{}, telemetry.Party{}},
		"a pod without identity":     {party{workload: "shop/till-7"}, telemetry.Party{Namespace: "shop"}},
		"of this trust domain":       {party{identity: here.Principal}, here},
		"of its alias":               {party{identity: alias.Principal}, alias},
		"of another trust domain":    {party{identity: till("far.test").Principal}, till("far.test")},
		"not of Kubernetes":          {party{identity: "spiffe://far.test/x"}, telemetry.Party{Principal: "spiffe://far.test/x"}},
		"a Service without endpoint": {party{service: "shop/bank"}, telemetry.Party{Cluster: "east", Service: telemetry.Service{Name: "bank", Namespace: "shop", Domain: "cluster.test"}}},
		"a name that is too long": {party{workload: "shop/x", naming: naming{workload: strings.Repeat("x", 300)}},
			telemetry.Party{Workload: strings.Repeat("x", 253), Namespace: "shop", Cluster: "east"}},
	} {
		if got := tn.labels(test.party); got != test.want {
			t.Errorf("%s: got %+v, want %+v", name, got, test.want)
		}
	}
	if before, want := newTunnel(t.Context(), t.Context(), Options{}).labels(party{identity: here.Principal}), till("cluster.local"); before != want {
		t.Errorf("before an agent has said anything: got %+v, want %+v", before, want)
	}
}

// TestPresent: what traffic is kept by are the workloads of this node, not their identities.
func TestPresent(t *testing.T) {
	tn := newTunnel(t.Context(), t.Context(), Options{})
	id := spiffeid.RequireFromString("spiffe://cluster.local/ns/shop/sa/till")
	for i, name := range []string{"till-v1", "till-v1", "till-v2"} {
		w := tn.newWorkload(uint64(i))
		w.spec.Store(&spec{name: "shop/pod", identity: id, naming: naming{workload: name}})
		tn.workloads[w.id] = w
	}
	party := func(name string) telemetry.Party {
		return telemetry.Party{Workload: name, Namespace: "shop", Principal: id.String()}
	}
	if p := tn.present(); !p[party("till-v1")] || !p[party("till-v2")] || len(p) != 2 {
		t.Errorf("got %v", p)
	}
	tn.forget(0)
	tn.forget(2)
	if p := tn.present(); !p[party("till-v1")] || len(p) != 1 {
		t.Errorf("got %v, want the one of which a pod is left", p)
	}
}

// TestDestinationMissing: a connection of which the kernel does not know where it wanted to go is reset and counted.
func TestDestinationMissing(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	n := newNode(t, ca)
	out := n.pod(1, "127.77.1.1", ca.id("client"))
	n.start()
	wantReset(t, out)
	n.eventually("the count", func() bool { return n.tunnel.Metrics.DestinationMissing.Load() == 1 })
	n.await("original destination unknown")
}

// TestFailedDeliveryNamesTheApplication and not the client, whose address the socket is connected to.
func TestFailedDeliveryNamesTheApplication(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	n := newNode(t, ca)
	out := same(t, ca, n, "127.77.2.1:9", "server", later())
	n.start()
	wantReset(t, out)
	n.await("deliver to 127.77.2.1:9 of default/pod-2: connection refused")
}
