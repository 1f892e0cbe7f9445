package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/datapath"
	"github.com/culvert-mesh/culvert/agent/enroll"
	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/policy"
	"github.com/culvert-mesh/culvert/tunnel/control"
)

// The ports that listeners prefer on a pod's loopback address: the ones Istio reserves in pods too.
const (
	outboundPort = 15001
	hbonePort    = 15008
)

// workload is an enrolled pod of this node.
type workload struct {
	id        uint64      // cookie of its network namespace
	listed    *source.Pod // as the snapshot has it
	pod       *source.Pod // with the addresses that were proved
	container string      // the runtime's id of the pod's sandbox; empty when found rather than told
	identity  spiffeid.ID
	netns     *enroll.Netns
	listeners []listener
	decision  policy.Decision
	modes     policy.Modes                 // what the kernel enforces
	latest    atomic.Pointer[policy.Modes] // the same, for those that close connections beside the loop
}

// listener is a listening socket inside the pod. The agent keeps it too, so that connections wait in its
// backlog while the tunnel restarts.
type listener struct {
	slot   datapath.ListenerSlot
	socket *net.TCPListener
	// waits says that a predecessor's listener, which a tunnel still holds, is in the kernel's map: it stays there until
	// a tunnel has this one as well, or connections would be lost if this agent ended before.
	waits bool
}

func (l listener) kind() control.ListenerKind {
	if l.slot == datapath.OutboundIPv4 || l.slot == datapath.OutboundIPv6 {
		return control.ListenerKind_LISTENER_KIND_OUTBOUND
	}
	return control.ListenerKind_LISTENER_KIND_HBONE
}

// setModes is called before the kernel is loosened, and after it was tightened.
func (w *workload) setModes(m policy.Modes) {
	w.modes = m
	w.latest.Store(&m)
}

// isPlaceOf reports whether the workload is where the pod is now, as the pod's identity is. An address may not be
// listed yet.
func (w *workload) isPlaceOf(pod *source.Pod) bool {
	return pod.UID == w.pod.UID && pod.NetnsPath == w.pod.NetnsPath && pod.ServiceAccount == w.pod.ServiceAccount &&
		(len(pod.Addresses) == 0 || sameAddresses(pod.Addresses, w.pod.Addresses))
}

// renew takes over what changed of a pod that stayed in its place.
func (w *workload) renew(pod *source.Pod) {
	w.listed, w.pod = pod, at(pod, w.pod.Addresses)
}

// at is the pod with addresses that are proved to be its own.
func at(pod *source.Pod, addresses []netip.Addr) *source.Pod {
	if slices.Equal(pod.Addresses, addresses) {
		return pod
	}
	p := *pod
	p.Addresses = addresses
	return &p
}

func sameAddresses(a, b []netip.Addr) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.SortFunc(a, netip.Addr.Compare)
	slices.SortFunc(b, netip.Addr.Compare)
	return slices.Equal(a, b)
}

func (w *workload) close() {
	for _, l := range w.listeners {
		l.socket.Close()
	}
	w.netns.Close()
}

func (w *workload) address(ipv6 bool) netip.Addr {
	for _, a := range w.pod.Addresses {
		if a = a.Unmap(); a.Is6() == ipv6 {
			return a
		}
	}
	return netip.Addr{}
}

// policyFor is the name of the policy that decides on a port, for messages.
func (w *workload) policyFor(port uint16) string { return w.decision.ForPort(port).Policy.String() }

// attach leaves in the kernel whatever it managed when it fails: that only ever refuses more.
func (a *Agent) attach(w *workload) error {
	modes, err := a.firstModes(w)
	if err != nil {
		return err
	}
	if err := a.path.SetPolicy(w.id, modes); err != nil {
		return fmt.Errorf("policy: %w", err)
	}
	w.setModes(modes)
	if err := a.listen(w); err != nil {
		return err
	}
	return a.path.Attach(datapath.Workload{Cookie: w.id, Netns: w.netns.File(), IPv4: w.address(false), IPv6: w.address(true)})
}

func (a *Agent) listen(w *workload) error {
	slots := []struct {
		slot datapath.ListenerSlot
		ipv6 bool
		port uint16
	}{
		{datapath.OutboundIPv4, false, outboundPort},
		{datapath.HBONEIPv4, false, hbonePort},
		{datapath.OutboundIPv6, true, outboundPort},
		{datapath.HBONEIPv6, true, hbonePort},
	}
	for _, s := range slots {
		if !w.address(s.ipv6).IsValid() {
			continue
		}
		socket, err := w.netns.Listen(s.ipv6, s.port)
		if err != nil {
			return err
		}
		inherited, err := a.path.HasListener(w.id, s.slot)
		if err != nil {
			socket.Close()
			return err
		}
		w.listeners = append(w.listeners, listener{s.slot, socket, inherited})
		if inherited {
			continue
		}
		if err := a.path.SetListener(w.id, s.slot, socket); err != nil {
			return fmt.Errorf("listener: %w", err)
		}
	}
	return nil
}

// installListeners puts the listeners that waited in their place, once a tunnel has them.
func (a *Agent) installListeners(w *workload) {
	if a.workloads[w.id] != w {
		return
	}
	for i := range w.listeners {
		l := &w.listeners[i]
		if !l.waits {
			continue
		}
		if err := a.path.SetListener(w.id, l.slot, l.socket); err != nil {
			a.reportOnce("listener of "+w.pod.Ref(), err)
			continue
		}
		l.waits = false
	}
}

// replaceLostListeners is for inherited listeners whose last holder ended before a tunnel took the new ones.
func (a *Agent) replaceLostListeners(w *workload) {
	for i := range w.listeners {
		if !w.listeners[i].waits {
			continue
		}
		if there, err := a.path.HasListener(w.id, w.listeners[i].slot); err != nil || !there {
			a.installListeners(w)
			return
		}
	}
}

// unenroll returns the pod to plain networking.
func (a *Agent) unenroll(w *workload) {
	if _, err := a.path.CloseDeliveries(w.netns.File(), w.id); err != nil {
		a.log.Error("deliveries not closed", "workload", w.pod.Ref(), "error", err)
	}
	a.observer.leaving(w.id)
	if err := a.path.Detach(w.id); err != nil {
		a.log.Error("pod not detached", "workload", w.pod.Ref(), "error", err)
	}
	a.letGo(w)
	a.tellUnenrolled(w.pod)
	a.log.Info("pod no longer enrolled", "workload", w.pod.Ref())
}

// letGo gives up all of a pod but what the kernel enforces.
func (a *Agent) letGo(w *workload) {
	delete(a.workloads, w.id)
	delete(a.byPod, w.pod.Ref())
	delete(a.reported, "policy of "+w.pod.Ref())
	a.touchWorkload(w)
	for s := range a.sessions {
		s.forgetRoutes(w.id)
	}
	a.broadcast(outgoing{message: goneMessage(w.id)})
	a.keeper.Release(w.principal())
	w.close()
}

// sockets answers a tunnel that runs low on them.
func (a *Agent) sockets(s *session, need *control.NeedSockets) {
	const most = 200 // what one message carries
	answer := &control.Sockets{Workload: need.Workload, Ipv6: need.Ipv6}
	var files []*os.File
	err := errSocketsWaiting
	if s.waiting.Load() < maxWaiting {
		files, err = a.makeSockets(need.Workload, need.Ipv6, int(min(need.Count, most)))
	}
	if err != nil {
		answer.Error = err.Error()
	}
	s.waiting.Add(int64(len(files)))
	s.send(outgoing{
		message: &control.FromAgent{Message: &control.FromAgent_Sockets{Sockets: answer}},
		files:   files,
		release: func() {
			closeFiles(files)
			s.waiting.Add(-int64(len(files)))
		},
	})
}

var errSocketsWaiting = errors.New("too many sockets wait to be taken")

func (a *Agent) makeSockets(id uint64, ipv6 bool, count int) ([]*os.File, error) {
	w := a.workloads[id]
	if w == nil {
		return nil, errors.New("workload is not enrolled here")
	}
	files, err := w.netns.Sockets(ipv6, count)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if err := a.path.Exempt(int(f.Fd())); err != nil {
			closeFiles(files)
			return nil, fmt.Errorf("exempt socket: %w", err)
		}
	}
	return files, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
