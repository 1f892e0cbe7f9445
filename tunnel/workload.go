package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/tunnel/control"
)

// listenerDrain is how long a listener that was replaced goes on accepting what is in its backlog.
const listenerDrain = time.Second

// portMode is the mode of a port and the policy that decided it.
type portMode struct {
	mode   control.Mode
	policy string
}

// spec is what the agent said of a workload. It does not change once made.
type spec struct {
	name      string // "namespace/name"
	identity  spiffeid.ID
	naming    naming
	addresses []netip.Addr
	mode      portMode
	ports     map[uint16]portMode
}

func parseSpec(m *control.Workload) (*spec, error) {
	name := m.GetNamespace() + "/" + m.GetName()
	identity, err := spiffeid.FromString(m.GetIdentity())
	if err != nil {
		return nil, fmt.Errorf("workload %s: identity: %w", name, err)
	}
	addresses, err := control.ToAddrs(m.GetAddresses())
	if err != nil {
		return nil, fmt.Errorf("workload %s: %w", name, err)
	}
	s := &spec{name: name, identity: identity, naming: parseNaming(m.GetNaming()), addresses: addresses, mode: parseMode(m.GetDefaultMode())}
	s.ports = make(map[uint16]portMode, len(m.GetPortModes()))
	for _, p := range m.GetPortModes() {
		if p.GetPort() == 0 || p.GetPort() > 65535 {
			return nil, fmt.Errorf("workload %s: mode of port %d", name, p.GetPort())
		}
		s.ports[uint16(p.GetPort())] = parseMode(p)
	}
	return s, nil
}

func parseMode(m *control.PortMode) portMode {
	mode := m.GetMode()
	if mode != control.Mode_MODE_DISABLE && mode != control.Mode_MODE_PERMISSIVE {
		mode = control.Mode_MODE_STRICT
	}
	return portMode{mode: mode, policy: m.GetPolicy()}
}

// name returns the mode as policies spell it.
func (m portMode) name() string { return strings.TrimPrefix(m.mode.String(), "MODE_") }

func (s *spec) forPort(port uint16) portMode {
	if m, ok := s.ports[port]; ok {
		return m
	}
	return s.mode
}

// source returns the address to connect from towards destination: the client's own if the families
// agree, else the workload's first of that family.
func (s *spec) source(client, destination netip.Addr) (netip.Addr, error) {
	if client.Is4() == destination.Is4() && slices.Contains(s.addresses, client) {
		return client, nil
	}
	for _, a := range s.addresses {
		if a.Is4() == destination.Is4() {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("workload %s has no address to reach %s from", s.name, destination)
}

// workload is one enrolled pod of this node.
type workload struct {
	id     uint64
	spec   atomic.Pointer[spec]
	routes *routes
	v4, v6 *reserve

	handshakes chan struct{} // bounds inbound connections that have not proved who they are
	peers      chan struct{} // bounds inbound connections that have
	relays     chan struct{} // bounds outbound connections

	noise noise // about its connections

	ended chan struct{} // closed with the workload: its peers must connect to what takes its place

	mu        sync.Mutex
	listeners map[control.ListenerKind][]net.Listener
	announced uint64 // the session that last told of it
	stopped   bool   // takes no listeners any more
	gone      bool
}

// reserve returns the reserve of sockets for an address's family.
func (w *workload) reserve(a netip.Addr) *reserve {
	if a.Is4() {
		return w.v4
	}
	return w.v6
}

// replace makes l the listener of its kind, has accept started for each, and lets the one before finish its backlog.
func (w *workload) replace(kind control.ListenerKind, l []net.Listener, accept func(net.Listener)) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gone || w.stopped {
		return false
	}
	for _, old := range w.listeners[kind] {
		drainListener(old)
	}
	w.listeners[kind] = l
	for _, one := range l {
		accept(one)
	}
	return true
}

// stopAccepting closes the listeners and takes no others. What was accepted goes on.
func (w *workload) stopAccepting() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	for _, ls := range w.listeners {
		closeListeners(ls)
	}
	w.listeners = map[control.ListenerKind][]net.Listener{}
}

func drainListener(l net.Listener) {
	if d, ok := l.(interface{ SetDeadline(time.Time) error }); !ok || d.SetDeadline(time.Now().Add(listenerDrain)) != nil {
		_ = l.Close()
	}
}

// close stops accepting. Open connections go on.
func (w *workload) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gone {
		return
	}
	w.gone = true
	close(w.ended)
	for _, ls := range w.listeners {
		for _, l := range ls {
			_ = l.Close()
		}
	}
	w.listeners = nil
	w.v4.close()
	w.v6.close()
}

// workload returns the workload of a cookie, nil if there is none.
func (t *tunnel) workload(id uint64) *workload {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.workloads[id]
}

func (t *tunnel) newWorkload(id uint64) *workload {
	w := &workload{
		id:         id,
		listeners:  map[control.ListenerKind][]net.Listener{},
		handshakes: make(chan struct{}, maxHandshakes),
		peers:      make(chan struct{}, maxPeers),
		relays:     make(chan struct{}, maxRelays),
		ended:      make(chan struct{}),
	}
	need := func(ipv6 bool) func(uint32) {
		return func(count uint32) {
			t.post(&control.FromTunnel{Message: &control.FromTunnel_NeedSockets{
				NeedSockets: &control.NeedSockets{Workload: id, Ipv6: ipv6, Count: count}}})
		}
	}
	w.v4, w.v6 = &reserve{ask: need(false)}, &reserve{ask: need(true)}
	w.routes = newRoutes(func(destination netip.AddrPort, forget bool) bool {
		return t.post(&control.FromTunnel{Message: &control.FromTunnel_RouteRequest{RouteRequest: &control.RouteRequest{
			Workload: id, Address: control.FromAddr(destination.Addr()), Port: uint32(destination.Port()), Forget: forget}}})
	})
	return w
}

// announce takes a workload or an update of one. It consumes files.
func (t *tunnel) announce(session uint64, m *control.Workload, files []*os.File) error {
	defer control.CloseFiles(files)
	s, err := parseSpec(m)
	if err != nil {
		return err
	}
	if len(files) != len(m.GetListeners()) {
		return fmt.Errorf("workload %s: %d descriptors for %d listeners", s.name, len(files), len(m.GetListeners()))
	}
	listeners, err := openListeners(m.GetListeners(), files)
	if err != nil {
		return fmt.Errorf("workload %s: %w", s.name, err)
	}
	t.mu.Lock()
	w := t.workloads[m.GetId()]
	if w == nil {
		w = t.newWorkload(m.GetId())
		w.stopped = t.stopped
		t.workloads[m.GetId()] = w
	}
	w.spec.Store(s)
	w.mu.Lock()
	fresh := w.announced != session
	w.announced = session
	w.mu.Unlock()
	t.mu.Unlock()

	for kind, ls := range listeners {
		// Started under the workload's lock, so that whoever stops accepting knows of all that accept.
		start := func(l net.Listener) { t.accepting.Go(func() { t.accept(w, kind, l.(*net.TCPListener)) }) }
		if !w.replace(kind, ls, start) {
			closeListeners(ls)
		}
	}
	if fresh {
		t.prime(w, s)
	}
	return nil
}

// prime asks a new agent for what a workload needs.
func (t *tunnel) prime(w *workload, s *spec) {
	if slices.ContainsFunc(s.addresses, netip.Addr.Is4) {
		w.v4.reconnected()
	}
	if slices.ContainsFunc(s.addresses, netip.Addr.Is6) {
		w.v6.reconnected()
	}
	w.routes.reconnected()
}

func openListeners(kinds []control.ListenerKind, files []*os.File) (map[control.ListenerKind][]net.Listener, error) {
	out := map[control.ListenerKind][]net.Listener{}
	for i, kind := range kinds {
		l, err := net.FileListener(files[i])
		if _, ok := l.(*net.TCPListener); err == nil && !ok {
			err = errors.Join(errors.New("not a TCP socket"), l.Close())
		}
		if err != nil {
			for _, ls := range out {
				closeListeners(ls)
			}
			return nil, fmt.Errorf("listener %d: %w", i, err)
		}
		out[kind] = append(out[kind], l)
	}
	return out, nil
}

func closeListeners(ls []net.Listener) {
	for _, l := range ls {
		_ = l.Close()
	}
}

func (t *tunnel) forget(id uint64) {
	t.mu.Lock()
	w := t.workloads[id]
	delete(t.workloads, id)
	t.mu.Unlock()
	if w != nil {
		t.end(w)
	}
}

func (t *tunnel) end(w *workload) {
	w.close()
	t.pool.forget(w.id)
}

// forgetOthers drops the workloads that an agent which came back has not announced.
func (t *tunnel) forgetOthers(ctx context.Context, session uint64) {
	select {
	case <-ctx.Done():
		return
	case <-time.After(t.grace):
	}
	// Looked at and taken out in one go: what is announced in between must stay.
	t.mu.Lock()
	var stale []*workload
	for id, w := range t.workloads {
		w.mu.Lock()
		if w.announced < session {
			stale = append(stale, w)
			delete(t.workloads, id)
		}
		w.mu.Unlock()
	}
	t.mu.Unlock()
	for _, w := range stale {
		t.log.Info("workload dropped: the agent did not announce it", "workload", w.spec.Load().name)
		t.end(w)
	}
}

func (t *tunnel) nameOf(id uint64) string {
	if w := t.workload(id); w != nil {
		return w.spec.Load().name
	}
	return ""
}
