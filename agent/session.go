package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/datapath"
	"github.com/culvert-mesh/culvert/tunnel/control"
)

const (
	protocolVersion = 1
	acceptPause     = 100 * time.Millisecond
	// outgoingBacklog is how many messages may wait for a tunnel; one that falls further behind is cut off
	// and starts anew with the whole state.
	outgoingBacklog = 4096
	// maxWaiting bounds the sockets that wait for a tunnel to take them.
	maxWaiting = 1 << 14
	// maxBuild bounds what a tunnel may say of its version.
	maxBuild = 64
)

// session is one connected tunnel. routes is the loop's.
type session struct {
	conn   *control.Conn
	queue  chan outgoing
	gone   chan struct{}
	routes map[destination]*control.Route
	// unknown are destinations that nothing explains yet, for which the answer waits a moment.
	unknown map[destination]struct{}

	waiting atomic.Int64 // sockets in the queue
	since   time.Time
	flowing atomic.Int64  // messages with flows that wait for the loop
	lost    atomic.Uint64 // flows that the tunnel had no room for

	holds holdings // the loop's
	// What it said of itself is the loop's, too. build is empty for a tunnel that is older than this.
	build    string
	logLevel slog.Level
}

// forgetRoutes drops what was asked for a workload that is gone: no tunnel forgets those one by one.
func (s *session) forgetRoutes(workload uint64) {
	maps.DeleteFunc(s.routes, func(d destination, _ *control.Route) bool { return d.workload == workload })
}

// outgoing is a message and what it carries. release, if any, runs once it was sent or dropped.
type outgoing struct {
	message *control.FromAgent
	files   []*os.File
	release func()
	sent    func() // if any, runs when it was sent
}

func (o outgoing) done() {
	if o.release != nil {
		o.release()
	}
}

// send queues a message; a tunnel that does not keep up is disconnected. Called by the loop only.
func (s *session) send(o outgoing) {
	select {
	case s.queue <- o:
	default:
		o.done()
		s.conn.Close()
	}
}

// offer queues a message that may be lost, of which outsiders can cause any number: they must not fill the queue.
func (s *session) offer(o outgoing) bool {
	if len(s.queue) >= cap(s.queue)/4 {
		o.done()
		return false
	}
	s.send(o)
	return true
}

// drop disconnects and gives back what was still waiting to be sent.
func (s *session) drop() {
	s.conn.Close()
	for {
		select {
		case o := <-s.queue:
			o.done()
		default:
			return
		}
	}
}

func (a *Agent) broadcast(o outgoing) {
	for s := range a.sessions {
		s.send(outgoing{message: o.message, files: o.files})
	}
}

// acceptSessions lets tunnels in. More than one may be there while one takes over from another.
func (a *Agent) acceptSessions(ctx context.Context, l *control.Listener) error {
	places := make(chan struct{}, maxSessions)
	for {
		conn, err := l.Accept(ctx)
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			// Out of descriptors, for one: no reason to end, and the tunnel waits in the backlog.
			a.log.Error("tunnel not accepted", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		if err := a.admit(conn); err != nil {
			a.log.Warn("control connection refused", "error", err)
			conn.Close()
			continue
		}
		s := &session{conn: conn, queue: make(chan outgoing, outgoingBacklog), gone: make(chan struct{}),
			routes: map[destination]*control.Route{}, since: time.Now()}
		select {
		case places <- struct{}{}:
		default:
			a.log.Warn("control connection refused: too many at once", "most", maxSessions)
			conn.Close()
			continue
		}
		a.tasks.Go(func() { a.write(ctx, s) })
		a.tasks.Go(func() {
			defer func() { <-places }()
			a.read(s)
		})
	}
}

// admit checks who dialled: SVIDs and their keys go down this connection.
func (a *Agent) admit(conn *control.Conn) error {
	uid, err := conn.PeerUID()
	if err != nil {
		return fmt.Errorf("peer credentials: %w", err)
	}
	if int(uid) != a.TunnelUID {
		return fmt.Errorf("user %d is not the tunnel's user %d", uid, a.TunnelUID)
	}
	return nil
}

func (a *Agent) write(ctx context.Context, s *session) {
	defer s.drop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.gone:
			return
		case o := <-s.queue:
			err := s.conn.Send(o.message, o.files...)
			o.done()
			if err == nil && o.sent != nil {
				o.sent()
			}
			if err != nil {
				a.log.Warn("tunnel cannot be told", "error", err)
				return
			}
		}
	}
}

func (a *Agent) read(s *session) {
	a.log.Info("tunnel connected")
	// What the loop queued after the writer had ended is given back as well.
	defer a.post(func() {
		delete(a.sessions, s)
		s.drop()
	})
	defer close(s.gone)
	named := 0 // SVIDs that it holds
	for {
		m, files, err := s.conn.ReceiveFromTunnel()
		closeFiles(files)
		if err != nil {
			a.log.Info("tunnel disconnected", "error", err)
			return
		}
		switch m := m.Message.(type) {
		case *control.FromTunnel_Hello:
			a.post(func() { a.welcome(s, m.Hello) })
		case *control.FromTunnel_NeedSockets:
			a.post(func() { a.sockets(s, m.NeedSockets) })
		case *control.FromTunnel_RouteRequest:
			a.post(func() { a.route(s, m.RouteRequest) })
		case *control.FromTunnel_Holding:
			if named++; named > maxHoldings {
				continue
			}
			id, err := a.adopt(m.Holding)
			a.post(func() { a.held(s, id, err) })
		case *control.FromTunnel_Flows:
			s.lost.Add(m.Flows.GetLost())
			a.observer.take(s, m.Flows)
		case *control.FromTunnel_Verified:
			a.post(func() { a.verified(m.Verified) })
		}
	}
}

// welcome tells a tunnel everything.
func (a *Agent) welcome(s *session, hello *control.Hello) {
	if _, again := a.sessions[s]; again {
		a.log.Warn("tunnel greets twice: disconnected")
		s.conn.Close()
		return
	}
	if hello.Version != protocolVersion {
		a.log.Error("tunnel speaks another version", "tunnel", hello.Version, "agent", protocolVersion)
		s.conn.Close()
		return
	}
	s.build, s.logLevel = buildOf(hello), slog.Level(hello.GetLogLevel())
	if skew := skewOf(a.Version, s.version()); skew != "" {
		a.log.Warn("versions differ", "reason", skew)
	}
	s.send(outgoing{message: a.welcomeMessage()})
	for _, bundle := range a.keeper.Bundles() {
		if !bundle.Empty() { // not known yet, while the tunnel may have them from an earlier agent
			s.send(bundleMessage(bundle))
		}
	}
	a.sessions[s] = struct{}{}
	for _, id := range a.keeper.Identities() {
		a.tellSVID(id, s)
	}
	a.expectHoldings(s, hello.Holdings)
	for _, w := range a.workloads {
		a.announceTo(s, w)
	}
}

// buildOf reads what anybody may have written who took a tunnel over.
func buildOf(hello *control.Hello) string {
	build := hello.GetBuild()
	return text(build[:min(len(build), maxBuild)])
}

// version is the tunnel's, for people.
func (s *session) version() string { return cmp.Or(s.build, admin.VersionUnknown) }

func (a *Agent) announce(w *workload) {
	for s := range a.sessions {
		a.announceTo(s, w)
	}
}

// announceTo hands over the workload with its listeners. The descriptors are copies, so that the agent may
// close its own at any time.
func (a *Agent) announceTo(s *session, w *workload) {
	m := workloadMessage(w)
	var files []*os.File
	for _, l := range w.listeners {
		f, err := l.socket.File()
		if err != nil {
			a.log.Error("listener not handed over", "workload", w.pod.Ref(), "error", err)
			continue
		}
		files = append(files, f)
		m.Listeners = append(m.Listeners, l.kind())
	}
	s.send(outgoing{
		message: &control.FromAgent{Message: &control.FromAgent_Workload{Workload: m}},
		files:   files, release: func() { closeFiles(files) },
		sent: func() { a.post(func() { a.installListeners(w) }) },
	})
}

// announceUpdate tells changed modes; the listeners stay.
func (a *Agent) announceUpdate(w *workload) {
	a.broadcast(outgoing{message: &control.FromAgent{Message: &control.FromAgent_Workload{Workload: workloadMessage(w)}}})
}

func (a *Agent) refused(r datapath.Refusal) {
	a.observer.refused(r)
	w := a.workloads[r.Cookie]
	if w == nil {
		return
	}
	message := &control.FromAgent{Message: &control.FromAgent_Refused{Refused: &control.Refused{
		Workload: w.id,
		Source:   r.Source.Addr().AsSlice(), SourcePort: uint32(r.Source.Port()),
		Destination: r.Destination.Addr().AsSlice(), DestinationPort: uint32(r.Destination.Port()),
		Policy: w.policyFor(r.Destination.Port()), Suppressed: r.Suppressed,
	}}}
	for s := range a.sessions {
		if !s.offer(outgoing{message: message}) {
			a.metrics.Unreported(1)
		}
	}
}

func workloadMessage(w *workload) *control.Workload {
	m := &control.Workload{
		Id: w.id, Namespace: w.pod.Namespace, Name: w.pod.Name, ServiceAccount: w.pod.ServiceAccount,
		Identity: w.identity.String(), Naming: namingOf(w.pod),
		DefaultMode: &control.PortMode{Mode: wireMode(w.modes.Default), Policy: w.decision.Policy.String()},
	}
	for _, address := range w.pod.Addresses {
		m.Addresses = append(m.Addresses, address.Unmap().AsSlice())
	}
	for port, mode := range w.modes.Ports {
		m.PortModes = append(m.PortModes, &control.PortMode{Port: uint32(port), Mode: wireMode(mode), Policy: w.policyFor(port)})
	}
	return m
}

func goneMessage(id uint64) *control.FromAgent {
	return &control.FromAgent{Message: &control.FromAgent_WorkloadGone{WorkloadGone: &control.WorkloadGone{Id: id}}}
}

func routeMessage(r *control.Route) outgoing {
	return outgoing{message: &control.FromAgent{Message: &control.FromAgent_Route{Route: r}}}
}
