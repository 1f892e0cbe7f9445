package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/tunnel/control"
)

const (
	backoffLeast = 50 * time.Millisecond
	backoffMost  = 2 * time.Second
	outboxSize   = 16384
	maxHoldings  = 16384
)

// session is one connection to one agent.
type session struct {
	number  uint64
	control *control.Conn
	outbox  chan *control.FromTunnel
	welcome bool
}

// keepSession is connected to an agent, one after the other, until ctx ends.
func (t *tunnel) keepSession(ctx context.Context) {
	backoff := backoffLeast
	for number := uint64(1); ctx.Err() == nil; number++ {
		welcomed, err := t.runSession(ctx, number)
		if ctx.Err() != nil {
			return
		}
		if welcomed {
			backoff = backoffLeast
			t.log.Warn("agent is gone: serving on with what it said last", "error", err)
		} else {
			t.noise.log(t.log, slog.LevelWarn, "agent cannot be reached", "path", t.ControlPath, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff/2 + rand.N(backoff)):
		}
		backoff = min(2*backoff, backoffMost)
	}
}

func (t *tunnel) runSession(ctx context.Context, number uint64) (welcomed bool, err error) {
	conn, err := control.Dial(ctx, t.ControlPath)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	s := &session{number: number, control: conn, outbox: make(chan *control.FromTunnel, outboxSize)}
	holdings := t.holdings(time.Now())
	hello := &control.FromTunnel{Message: &control.FromTunnel_Hello{
		Hello: &control.Hello{Version: control.Version, Holdings: uint32(len(holdings)), Build: t.Version, LogLevel: int32(t.LogLevel.Level())}}}
	if err := conn.Send(hello); err != nil {
		cancel()
		return false, errors.Join(err, conn.Close())
	}
	t.current.Store(s)
	var wg sync.WaitGroup
	wg.Go(func() { s.write(ctx, holdings, t.flows) })
	err = t.read(ctx, &wg, s)
	t.current.Store(nil)
	if s.welcome {
		t.tellSession(false)
	}
	cancel()
	wg.Wait()
	_ = conn.Close()
	return s.welcome, err
}

// holdings tells which SVIDs a new agent need not ask for. It gets them back to look at, and never a key.
func (t *tunnel) holdings(now time.Time) (all []*control.FromTunnel) {
	for _, v := range t.ids.held() {
		if len(all) < maxHoldings && !v.expired(now) {
			all = append(all, &control.FromTunnel{Message: &control.FromTunnel_Holding{
				Holding: &control.Holding{Chain: v.certificate.Certificate}}})
		}
	}
	return all
}

// write sends the holdings, then what is posted, which waits in the outbox meanwhile. It does so beside the reader: an
// agent that says much before it listens is listened to. One that does not read for seconds is as good as gone.
func (s *session) write(ctx context.Context, holdings []*control.FromTunnel, flows *flows) {
	for _, m := range holdings {
		if ctx.Err() != nil {
			return
		}
		if err := s.control.Send(m); err != nil {
			_ = s.control.Close()
			return
		}
	}
	for m := s.next(ctx, flows); m != nil; m = s.next(ctx, flows) {
		if err := s.control.Send(m); err != nil {
			flows.lost.Add(uint64(len(m.GetFlows().GetFlows())))
			_ = s.control.Close()
			return
		}
	}
}

// next returns what is to be sent, nil when ctx has ended. Flows come last: nobody waits for them.
func (s *session) next(ctx context.Context, flows *flows) *control.FromTunnel {
	select {
	case m := <-s.outbox:
		return m
	default:
	}
	select {
	case <-ctx.Done():
		return nil
	case m := <-s.outbox:
		return m
	case m := <-flows.batches:
		return m
	}
}

// post sends a message to the agent without waiting. Without an agent, or with one that has stopped
// reading, the message is dropped: whatever is still needed is asked for again.
func (t *tunnel) post(m *control.FromTunnel) (queued bool) {
	s := t.current.Load()
	return s != nil && s.post(m)
}

func (s *session) post(m *control.FromTunnel) (queued bool) {
	select {
	case s.outbox <- m:
		return true
	default:
		return false
	}
}

func (t *tunnel) read(ctx context.Context, wg *sync.WaitGroup, s *session) error {
	for {
		m, files, err := s.control.ReceiveFromAgent()
		if err != nil {
			return err
		}
		if err := t.handle(ctx, wg, s, m, files); err != nil {
			t.log.Error("agent's message not understood", "error", err)
			if !s.welcome {
				return err
			}
		}
	}
}

// handle applies one message and consumes its files.
func (t *tunnel) handle(ctx context.Context, wg *sync.WaitGroup, s *session, m *control.FromAgent, files []*os.File) error {
	if w := m.GetWelcome(); w != nil {
		return t.welcome(ctx, wg, s, w, files)
	}
	if !s.welcome {
		control.CloseFiles(files)
		return errors.New("first message is no welcome")
	}
	switch m := m.GetMessage().(type) {
	case *control.FromAgent_Workload:
		return t.announce(s.number, m.Workload, files)
	case *control.FromAgent_Sockets:
		return t.sockets(m.Sockets, files)
	}
	control.CloseFiles(files)
	switch m := m.GetMessage().(type) {
	case *control.FromAgent_WorkloadGone:
		t.forget(m.WorkloadGone.GetId())
	case *control.FromAgent_Svid:
		return t.ids.setSVID(m.Svid)
	case *control.FromAgent_Bundle:
		return t.ids.setBundle(m.Bundle)
	case *control.FromAgent_Route:
		return t.route(m.Route)
	case *control.FromAgent_Refused:
		return t.refused(m.Refused)
	case *control.FromAgent_Verify:
		t.verify(ctx, wg, s, m.Verify)
	case *control.FromAgent_LogLevel:
		t.setLogLevel(slog.Level(m.LogLevel.GetLevel()))
	}
	return nil // of a later version
}

func (t *tunnel) welcome(ctx context.Context, wg *sync.WaitGroup, s *session, m *control.Welcome, files []*os.File) error {
	control.CloseFiles(files) // none is of use
	if m.GetVersion() != control.Version {
		return fmt.Errorf("agent speaks version %d, want %d", m.GetVersion(), control.Version)
	}
	if err := t.ids.welcome(m); err != nil {
		return err
	}
	t.cluster.Store(&cluster{id: m.GetCluster(), domain: m.GetClusterDomain()})
	s.welcome = true
	t.tellSession(true)
	t.log.Info("agent connected", "node", m.GetNode(), "trust_domain", m.GetTrustDomain())
	wg.Go(func() { t.forgetOthers(ctx, s.number) })
	return nil
}

func (t *tunnel) tellSession(connected bool) {
	t.connected.Store(connected)
	if t.OnSession != nil {
		t.OnSession(connected)
	}
}

func (t *tunnel) setLogLevel(level slog.Level) {
	before := t.LogLevel.Level()
	t.LogLevel.Set(min(before, level)) // else the line itself may be one too many
	t.log.Info("log level changed", "from", before, "to", level)
	t.LogLevel.Set(level)
}

func (t *tunnel) sockets(m *control.Sockets, files []*os.File) error {
	w := t.workload(m.GetWorkload())
	if w == nil {
		control.CloseFiles(files)
		return nil
	}
	r := w.v4
	if m.GetIpv6() {
		r = w.v6
	}
	r.put(files)
	if m.GetError() != "" {
		return fmt.Errorf("workload %s: sockets: %s", w.spec.Load().name, m.GetError())
	}
	return nil
}

func (t *tunnel) route(m *control.Route) error {
	w := t.workload(m.GetWorkload())
	if w == nil {
		return nil
	}
	destination, err := control.ToAddrPort(m.GetAddress(), m.GetPort())
	if err != nil {
		return fmt.Errorf("route: %w", err)
	}
	w.routes.set(destination, parseRoute(m))
	return nil
}

func (t *tunnel) refused(m *control.Refused) error {
	source, err := control.ToAddrPort(m.GetSource(), m.GetSourcePort())
	if err != nil {
		return fmt.Errorf("refused source: %w", err)
	}
	destination, err := control.ToAddrPort(m.GetDestination(), m.GetDestinationPort())
	if err != nil {
		return fmt.Errorf("refused destination: %w", err)
	}
	// The agent limits the rate, and says how many it left out.
	t.log.Warn("plaintext refused: workload is STRICT", "source", source.String(), "destination", destination.String(),
		"workload", t.nameOf(m.GetWorkload()), "policy", m.GetPolicy(), "suppressed", m.GetSuppressed())
	return nil
}

// reset closes a connection with RST.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
