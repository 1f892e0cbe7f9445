package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/enroll"
	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/svidcheck"
	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/tunnel/control"
)

// inspector answers the people on the node. Its methods are called by the goroutines of the socket's server; all that
// needs the agent's state asks the loop.
type inspector struct {
	agent *Agent
	*observer
}

var _ admin.Node = inspector{}

var errEnding = errors.New("agent is ending")

// inspect runs a question on the loop and waits for it. When it fails, the question may still be running: what it fills is
// to be left alone.
func (i inspector) inspect(ctx context.Context, question func(*Agent) error) error {
	answer := make(chan error, 1)
	select {
	case i.agent.events <- func() {
		if err := ctx.Err(); err != nil { // nobody waits any more
			answer <- err
			return
		}
		answer <- question(i.agent)
	}:
	case <-i.agent.ctx.Done():
		return errEnding
	case <-ctx.Done(): // the loop stands still
		return ctx.Err()
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Certificates implements admin.Node.
func (i inspector) Certificates(context.Context) (*admin.Certificates, error) {
	a := i.agent
	c := &admin.Certificates{
		Node: a.Node, TrustDomain: a.TrustDomain.Name(), Aliases: names(a.TrustDomainAliases),
		Source: a.keeper.Issuer(), Bundles: bundlesForPeople(a.keeper.Bundles()),
	}
	for _, s := range a.keeper.Status() {
		svid, err := svidForPeople(s)
		if err != nil {
			return nil, err
		}
		c.SVIDs = append(c.SVIDs, svid)
	}
	return c, nil
}

func svidForPeople(s identity.Status) (admin.SVID, error) {
	chain, err := svidcheck.Parse(s.Chain)
	if err != nil {
		return admin.SVID{}, fmt.Errorf("SVID %s: %w", s.ID, err)
	}
	svid := admin.SVID{
		Identity: s.ID.String(), Chain: admin.NewChain(chain), Failing: s.Err != nil,
		HeldByTunnelOnly: len(chain) > 0 && !s.KeyHere, FederatesWith: names(s.FederatesWith),
	}
	if len(chain) > 0 {
		svid.Issued = s.Obtained
	}
	if s.Err != nil {
		svid.LastError = s.Err.Error()
	}
	if !s.Renewal.IsZero() {
		svid.NextRenewal = &s.Renewal
	}
	for _, w := range s.Workloads {
		svid.Workloads = append(svid.Workloads, w.Namespace+"/"+w.Pod)
	}
	return svid, nil
}

func bundlesForPeople(bundles []*x509bundle.Bundle) []admin.Bundle {
	var all []admin.Bundle
	for _, b := range bundles {
		all = append(all, admin.Bundle{TrustDomain: b.TrustDomain().Name(), Roots: admin.NewChain(b.X509Authorities())})
	}
	return all
}

func names(domains []spiffeid.TrustDomain) []string {
	var all []string
	for _, d := range domains {
		all = append(all, d.Name())
	}
	return all
}

// Handshake implements admin.Node.
func (i inspector) Handshake(ctx context.Context, from, to string) (*admin.Handshake, error) {
	a := i.agent
	var (
		snapshot *source.Snapshot
		answer   = make(chan *control.Verified, 1)
		number   uint64
		h        = &admin.Handshake{
			Node: a.Node, From: from, To: to, Bundles: bundlesForPeople(a.keeper.Bundles()), Aliases: names(a.TrustDomainAliases),
		}
		own []netip.Addr
		id  uint64
	)
	err := i.inspect(ctx, func(a *Agent) error {
		w := a.byPod[from]
		switch {
		case a.snapshot == nil:
			return errors.New("agent has not read the cluster's state yet")
		case w == nil:
			return a.notHere(from)
		}
		snapshot, own, id = a.snapshot, w.pod.Addresses, w.id
		h.FromIdentity = w.identity.String()
		return nil
	})
	if err != nil {
		return nil, err
	}
	request, err := i.request(h, snapshot, own)
	if err != nil {
		return nil, err
	}
	request.Workload = id
	err = i.inspect(ctx, func(a *Agent) (err error) {
		if ctx.Err() != nil {
			return ctx.Err() // nobody would take it out again
		}
		number, err = a.verify(request, answer)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer i.agent.post(func() { delete(a.verifying, number) })
	select {
	case m := <-answer:
		return h, fill(h, m)
	case <-ctx.Done():
		return nil, fmt.Errorf("the tunnel has not answered: %w", ctx.Err())
	}
}

// notHere says why a pod cannot be the near side of a handshake.
func (a *Agent) notHere(ref string) error {
	pod := a.snapshot.LocalPod(ref)
	if pod == nil {
		return fmt.Errorf("pod %s is not on node %s: %w", ref, a.Node, admin.ErrUnknownWorkload)
	}
	if why := a.unenrollable[ref]; why != "" {
		return fmt.Errorf("pod %s is not enrolled: %s", ref, why)
	}
	if d := enroll.Decide(a.snapshot.Namespace(pod.Namespace), pod, a.Enroll); !d.Enrolled {
		return fmt.Errorf("pod %s is not enrolled: %s", ref, d.Reason)
	}
	return fmt.Errorf("pod %s is not enrolled yet", ref)
}

// request finds the far side. It looks at all pods, and so not on the loop.
func (i inspector) request(h *admin.Handshake, snapshot *source.Snapshot, own []netip.Addr) (*control.Verify, error) {
	to := findPod(snapshot, h.To)
	if to == nil {
		return nil, fmt.Errorf("pod %s is not known, or has no address yet: %w", h.To, admin.ErrUnknownWorkload)
	}
	if to.HostNetwork {
		return nil, fmt.Errorf("pod %s uses the host's network: it is never in the mesh", h.To)
	}
	id, err := spiffeid.FromSegments(i.agent.TrustDomain, "ns", to.Namespace, "sa", to.ServiceAccount)
	if err != nil {
		return nil, fmt.Errorf("identity of pod %s: %w", h.To, err)
	}
	address, ok := sameFamily(to.Addresses, own)
	if !ok {
		return nil, fmt.Errorf("pods %s and %s have no address of the same family", h.From, h.To)
	}
	h.ExpectedIdentity, h.Address = id.String(), netip.AddrPortFrom(address, hbonePort).String()
	return &control.Verify{Address: address.AsSlice(), Port: hbonePort, Identity: id.String()}, nil
}

func findPod(s *source.Snapshot, ref string) *source.Pod {
	if pod := s.LocalPod(ref); pod != nil {
		return pod
	}
	for address := range s.Addresses() {
		if pod := s.PodByAddress(address); pod != nil && pod.Ref() == ref {
			return pod
		}
	}
	return nil
}

func sameFamily(theirs, own []netip.Addr) (netip.Addr, bool) {
	for _, t := range theirs {
		for _, o := range own {
			if t, o = t.Unmap(), o.Unmap(); t.Is4() == o.Is4() {
				return t, true
			}
		}
	}
	return netip.Addr{}, false
}

// fill reads what the tunnel says.
func fill(h *admin.Handshake, m *control.Verified) error {
	stages := map[control.Stage]admin.Stage{
		control.Stage_STAGE_PREPARE: admin.StagePrepare, control.Stage_STAGE_CONNECT: admin.StageConnect,
		control.Stage_STAGE_HANDSHAKE: admin.StageHandshake, control.Stage_STAGE_DONE: admin.StageDone,
	}
	stage, known := stages[m.GetReached()]
	if !known {
		return fmt.Errorf("the tunnel's answer has an unknown stage %d", m.GetReached())
	}
	h.Stage, h.Error = stage, strings.ToValidUTF8(m.GetError(), "?")
	h.TLSVersion, h.Cipher, h.Group = m.GetTlsVersion(), m.GetCipherSuite(), m.GetGroup()
	h.ConnectTime, h.HandshakeTime = time.Duration(m.GetConnectNanoseconds()), time.Duration(m.GetHandshakeNanoseconds())
	for _, c := range []struct {
		into *[]admin.Certificate
		ders [][]byte
	}{{&h.LocalChain, m.GetLocalChain()}, {&h.PeerChain, m.GetPeerChain()}} {
		chain, err := svidcheck.Parse(c.ders)
		if err != nil {
			return fmt.Errorf("the tunnel's answer: %w", err)
		}
		*c.into = admin.NewChain(chain)
	}
	return nil
}

var (
	errNoTunnel        = errors.New("no tunnel is connected to the agent")
	errTooManyVerified = errors.New("too many handshakes at one time")
)

const maxVerifying = 64

// verify asks a tunnel for a handshake. The answer goes to the channel, which has room for it.
func (a *Agent) verify(m *control.Verify, answer chan<- *control.Verified) (number uint64, err error) {
	if len(a.verifying) >= maxVerifying {
		return 0, errTooManyVerified
	}
	for s := range a.sessions {
		a.verifications++
		m.Number = a.verifications
		a.verifying[m.Number] = answer
		s.send(outgoing{message: &control.FromAgent{Message: &control.FromAgent_Verify{Verify: m}}})
		return m.Number, nil
	}
	return 0, errNoTunnel
}

// verified passes on what came of a handshake.
func (a *Agent) verified(m *control.Verified) {
	if answer := a.verifying[m.GetNumber()]; answer != nil {
		delete(a.verifying, m.GetNumber())
		answer <- m
	}
}

func listenAdmin(path string) (*admin.Listener, error) {
	if path == "" {
		return nil, nil
	}
	return admin.Listen(path)
}

// serveAdmin answers people until ctx ends.
func (a *Agent) serveAdmin(l *admin.Listener) func(context.Context) error {
	return func(ctx context.Context) error {
		return admin.Serve(ctx, l, inspector{a, a.observer}, a.Version, a.log)
	}
}
