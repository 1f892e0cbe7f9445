package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/tunnel/control"
)

var domain = spiffeid.RequireTrustDomainFromString("cluster.local")

// counting is a CA that counts what it is asked for.
type counting struct {
	*identity.InProcess
	asked atomic.Int64
}

func (c *counting) Issue(ctx context.Context, w identity.Workload) (*identity.SVID, error) {
	c.asked.Add(1)
	return c.InProcess.Issue(ctx, w)
}

func newCounting(t *testing.T) *counting {
	t.Helper()
	authority, err := ca.New(domain)
	if err != nil {
		t.Fatal(err)
	}
	return &counting{InProcess: &identity.InProcess{Authority: authority, Life: time.Hour}}
}

func principal(account string) identity.Workload {
	return identity.Workload{ID: spiffeid.RequireFromSegments(domain, "ns", "shop", "sa", account), Namespace: "shop", Pod: account}
}

// TestAgentTakesOverWhatTheTunnelHolds: after a restart the CA is asked only for what no tunnel has.
func TestAgentTakesOverWhatTheTunnelHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := newCounting(t)
		held := map[string]*control.Holding{}
		for _, account := range []string{"cart", "till", "gone"} {
			svid, err := issuer.InProcess.Issue(t.Context(), principal(account))
			if err != nil {
				t.Fatal(err)
			}
			held[account] = &control.Holding{Chain: [][]byte{svid.Certificates[0].Raw}}
		}
		events := make(chan func(), 100)
		a := &Agent{Options: Options{Issuer: issuer, TrustDomain: domain}, log: slog.New(slog.DiscardHandler),
			ctx: t.Context(), events: events, sessions: map[*session]struct{}{}}
		a.metrics = a.newMetrics()
		a.keeper = a.newKeeper()
		defer a.keeper.Close()
		for _, account := range []string{"cart", "till", "fresh"} {
			a.keeper.Use(principal(account))
		}
		connect := func(holdings uint32) *session {
			s := &session{queue: make(chan outgoing, 100)}
			a.sessions[s] = struct{}{}
			a.expectHoldings(s, holdings)
			return s
		}
		name := func(s *session, h *control.Holding) {
			id, err := a.adopt(h)
			a.held(s, id, err)
		}
		s := connect(4)
		name(s, held["cart"])
		name(s, &control.Holding{Chain: [][]byte{[]byte("garbage")}})
		name(s, held["till"])
		synctest.Wait()
		if n := issuer.asked.Load(); n != 0 {
			t.Fatalf("%d asked for before the tunnel has said all", n)
		}
		name(s, held["gone"])
		name(s, held["gone"]) // one too many
		synctest.Wait()
		if n := issuer.asked.Load(); n != 1 {
			t.Fatalf("%d asked for, want the one that the tunnel lacks", n)
		}
		// Another tunnel, which has nothing: now the keys are needed here.
		delete(a.sessions, connect(0))
		synctest.Wait()
		if n := issuer.asked.Load(); n != 3 {
			t.Fatalf("%d asked for, want the two that only the first tunnel has as well", n)
		}
		// What no pod uses is taken back from the tunnels.
		time.Sleep(svidGrace + time.Second)
		synctest.Wait()
		for len(events) > 0 {
			(<-events)()
		}
		gone := false
		for len(s.queue) > 0 {
			o := <-s.queue
			svid := o.message.GetSvid()
			gone = gone || svid.GetIdentity() == principal("gone").ID.String() && len(svid.GetChain()) == 0
			o.done()
			if svid != nil && len(strings.Trim(string(svid.Key), "\x00")) > 0 {
				t.Error("the key of a message that is done with is still in memory")
			}
		}
		if !gone {
			t.Error("the tunnel keeps what no pod uses")
		}
	})
}

// TestTunnelThatTakesOverGetsWhatTheOldOneNamesLater: in an upgrade the new tunnel may greet a new agent first.
func TestTunnelThatTakesOverGetsWhatTheOldOneNamesLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := newCounting(t)
		a := &Agent{Options: Options{Issuer: issuer, TrustDomain: domain}, log: slog.New(slog.DiscardHandler),
			ctx: t.Context(), events: make(chan func(), 100), sessions: map[*session]struct{}{}}
		a.metrics = a.newMetrics()
		a.keeper = a.newKeeper()
		defer a.keeper.Close()
		a.keeper.Use(principal("cart"))
		svid, err := issuer.InProcess.Issue(t.Context(), principal("cart"))
		if err != nil {
			t.Fatal(err)
		}
		fresh, old := &session{queue: make(chan outgoing, 9)}, &session{queue: make(chan outgoing, 9)}
		for s := range map[*session]bool{fresh: true, old: true} {
			a.sessions[s] = struct{}{}
		}
		a.expectHoldings(old, 1)
		a.expectHoldings(fresh, 0)
		id, err := a.adopt(&control.Holding{Chain: [][]byte{svid.Certificates[0].Raw}})
		a.held(old, id, err)
		synctest.Wait()
		if n := issuer.asked.Load(); n != 1 {
			t.Fatalf("%d asked for, want the one that the new tunnel lacks", n)
		}
	})
}

func TestHoldingThatIsCostlyToLookAt(t *testing.T) {
	issuer := newCounting(t)
	a := &Agent{Options: Options{Issuer: issuer}, log: slog.New(slog.DiscardHandler)}
	for name, chain := range map[string][][]byte{
		"many": slices.Repeat([][]byte{issuer.Authority.Certificate().Raw}, 11), "large": {make([]byte, 17<<10)},
	} {
		if _, err := a.adopt(&control.Holding{Chain: chain}); err == nil || !strings.Contains(err.Error(), "at most") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFarSideOfAHandshake(t *testing.T) {
	x := source.NewIndex("here")
	for _, p := range []*source.Pod{
		{Namespace: "n", Name: "local", Node: "here", ServiceAccount: "one", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}},
		{Namespace: "n", Name: "far", Node: "there", ServiceAccount: "two", Addresses: []netip.Addr{netip.MustParseAddr("fd00::2"), netip.MustParseAddr("10.0.0.2")}},
		{Namespace: "n", Name: "six", Node: "there", ServiceAccount: "two", Addresses: []netip.Addr{netip.MustParseAddr("fd00::3")}},
		{Namespace: "n", Name: "host", Node: "here", HostNetwork: true, Addresses: []netip.Addr{netip.MustParseAddr("192.168.0.1")}},
	} {
		x.SetPod(p)
	}
	snapshot := x.Snapshot()
	i := inspector{agent: &Agent{Options: Options{TrustDomain: domain}}}
	for _, test := range []struct{ to, address, identity, err string }{
		{to: "n/local", address: "10.0.0.1:15008", identity: "spiffe://cluster.local/ns/n/sa/one"},
		{to: "n/far", address: "10.0.0.2:15008", identity: "spiffe://cluster.local/ns/n/sa/two"},
		{to: "n/six", err: "no address of the same family"},
		{to: "n/host", err: "host's network"},
		{to: "n/none", err: "is not known"},
	} {
		h := &admin.Handshake{From: "n/local", To: test.to}
		_, err := i.request(h, snapshot, []netip.Addr{netip.MustParseAddr("10.0.0.9")})
		switch {
		case test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)):
			t.Errorf("%s: error %v, want %q", test.to, err, test.err)
		case test.err == "" && (err != nil || h.Address != test.address || h.ExpectedIdentity != test.identity):
			t.Errorf("%s: %s at %s, %v", test.to, h.ExpectedIdentity, h.Address, err)
		}
	}
}
