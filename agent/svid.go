package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/svidcheck"
	"github.com/culvert-mesh/culvert/tunnel/control"
)

const (
	// svidGrace is how long an SVID outlives the last pod that used it: pods are replaced all the time.
	svidGrace = time.Minute
	// svidHoldOff is how long an agent that has just started waits for a tunnel that may hold SVIDs. A tunnel that
	// has lost its agent tries again at least every two seconds.
	svidHoldOff = 3 * time.Second
	// svidPatience is how long the start of a pod waits for its SVID: with a CA that answers it is there when the pod
	// first connects, and one that does not must not hold up the node.
	svidPatience = 2 * time.Second
	// maxHoldings bounds what a tunnel may claim to hold.
	maxHoldings = 16384
)

// principal is the workload as the Keeper knows it.
func (w *workload) principal() identity.Workload {
	return identity.Workload{
		ID: w.identity, Namespace: w.pod.Namespace, ServiceAccount: w.pod.ServiceAccount, Pod: w.pod.Name, UID: w.pod.UID,
	}
}

func (a *Agent) newKeeper() *identity.Keeper {
	return identity.NewKeeper(a.Issuer, a.log,
		func(id spiffeid.ID) {
			a.post(func() { a.tellSVID(id, slices.Collect(maps.Keys(a.sessions))...) })
		},
		identity.Grace(svidGrace), identity.HoldOff(svidHoldOff), identity.OnAttempt(a.metrics.Attempted),
		identity.OnDrop(func(id spiffeid.ID) {
			a.post(func() {
				if !a.keeper.Uses(id) {
					a.broadcast(svidGoneMessage(id))
				}
			})
		}))
}

// tellSVID gives an SVID to the tunnels, to each a copy of its own that is overwritten once it was sent.
func (a *Agent) tellSVID(id spiffeid.ID, to ...*session) {
	for _, s := range to {
		h, ok := a.keeper.Handover(id)
		if !ok {
			return
		}
		s.send(svidMessage(h))
	}
}

// holdings is what a tunnel says to hold from an earlier agent.
type holdings struct {
	expected int // of which nothing is known yet
	known    map[spiffeid.ID]struct{}
	refused  int
	err      error // why the last one was
}

// expectHoldings notes how many SVIDs a tunnel is about to name.
func (a *Agent) expectHoldings(s *session, n uint32) {
	s.holds = holdings{expected: int(min(n, maxHoldings)), known: map[spiffeid.ID]struct{}{}}
	if s.holds.expected == 0 {
		a.holdingsKnown(s)
	}
}

// adopt looks at one of them, in the session's own goroutine: a tunnel that was taken over must not be able to keep the
// loop busy.
func (a *Agent) adopt(m *control.Holding) (spiffeid.ID, error) {
	chain, err := svidcheck.Parse(m.GetChain())
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("held SVID: %w", err)
	}
	return a.keeper.Adopt(chain)
}

// held takes note of the outcome. What cannot be adopted is fetched, as if the tunnel did not have it, or taken back.
func (a *Agent) held(s *session, id spiffeid.ID, err error) {
	h := &s.holds
	if h.expected == 0 {
		return
	}
	h.expected--
	if err == nil {
		h.known[id] = struct{}{}
	} else {
		h.refused, h.err = h.refused+1, err
		if !id.IsZero() && !a.keeper.Uses(id) {
			s.send(svidGoneMessage(id))
		}
	}
	if h.expected == 0 {
		a.holdingsKnown(s)
	}
}

// holdingsKnown fetches what one of the tunnels lacks and only another one has, and lets a new agent's first requests
// go. All are looked at: while one takes over from another, the old one may be the last to say what it has.
func (a *Agent) holdingsKnown(s *session) {
	if n := len(s.holds.known); n > 0 {
		a.log.Info("SVIDs taken over that the tunnel holds", "number", n)
	}
	if s.holds.refused > 0 {
		a.log.Warn("some of what the tunnel holds is of no use", "number", s.holds.refused, "error", s.holds.err)
	}
	for other := range a.sessions {
		if other.holds.expected > 0 {
			continue // its turn comes
		}
		a.keeper.Need(func(id spiffeid.ID) bool {
			_, has := other.holds.known[id]
			return has
		})
	}
	a.keeper.Begin()
}

// followBundle tells the tunnels new roots.
func (a *Agent) followBundle(ctx context.Context) error {
	issuer, ok := a.Issuer.(identity.Notifier)
	if !ok {
		return nil
	}
	for {
		changed := issuer.Changed()
		a.post(a.tellBundles)
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// tellBundles tells all tunnels the roots of all trust domains, and which of those are known no more.
func (a *Agent) tellBundles() {
	known := map[spiffeid.TrustDomain]struct{}{}
	for _, bundle := range a.keeper.Bundles() {
		known[bundle.TrustDomain()] = struct{}{}
		delete(a.domains, bundle.TrustDomain())
		a.log.Info("trust bundle", "trust_domain", bundle.TrustDomain().Name(), "roots", len(bundle.X509Authorities()))
		if !bundle.Empty() {
			a.broadcast(bundleMessage(bundle))
		}
	}
	for gone := range a.domains {
		a.log.Info("trust bundle gone", "trust_domain", gone.Name())
		a.broadcast(bundleMessage(x509bundle.New(gone)))
	}
	a.domains = known
}

func (a *Agent) welcomeMessage() *control.FromAgent {
	m := &control.Welcome{Version: protocolVersion, Node: a.Node, TrustDomain: a.TrustDomain.Name()}
	for _, alias := range a.TrustDomainAliases {
		m.TrustDomainAliases = append(m.TrustDomainAliases, alias.Name())
	}
	return &control.FromAgent{Message: &control.FromAgent_Welcome{Welcome: a.cluster(m)}}
}

// bundleMessage carries the roots of a trust domain.
func bundleMessage(b *x509bundle.Bundle) outgoing {
	m := &control.Bundle{TrustDomain: b.TrustDomain().Name()}
	for _, root := range b.X509Authorities() {
		m.Roots = append(m.Roots, root.Raw)
	}
	return outgoing{message: &control.FromAgent{Message: &control.FromAgent_Bundle{Bundle: m}}}
}

// svidGoneMessage takes an identity back that no pod of the node has any more.
func svidGoneMessage(id spiffeid.ID) outgoing {
	return outgoing{message: &control.FromAgent{Message: &control.FromAgent_Svid{Svid: &control.SVID{Identity: id.String()}}}}
}

// svidMessage carries a certificate chain and its key. The tunnel is the only one that gets to read it.
func svidMessage(h identity.Handover) outgoing {
	m := &control.SVID{Identity: h.ID.String(), Chain: h.Chain, Key: h.Key}
	for _, domain := range h.FederatesWith {
		m.FederatesWith = append(m.FederatesWith, domain.Name())
	}
	return outgoing{
		message: &control.FromAgent{Message: &control.FromAgent_Svid{Svid: m}},
		release: func() { clear(h.Key) },
	}
}
