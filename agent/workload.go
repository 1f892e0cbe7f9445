package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

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
	id        uint64 // cookie of its network namespace
	pod       *source.Pod
	identity  spiffeid.ID
	netns     *enroll.Netns
	listeners []listener
	decision  policy.Decision
	modes     policy.Modes // what the kernel enforces
}

// listener is a listening socket inside the pod. The agent keeps it too, so that connections wait in its
// backlog while the tunnel restarts.
type listener struct {
	slot   datapath.ListenerSlot
	socket *net.TCPListener
}

func (l listener) kind() control.ListenerKind {
	if l.slot == datapath.OutboundIPv4 || l.slot == datapath.OutboundIPv6 {
		return control.ListenerKind_LISTENER_KIND_OUTBOUND
	}
	return control.ListenerKind_LISTENER_KIND_HBONE
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

// wantedPods are the pods of this node that the snapshot wants enrolled.
func (a *Agent) wantedPods() map[string]*source.Pod {
	wanted := map[string]*source.Pod{}
	for i := range a.snapshot.Pods {
		pod := &a.snapshot.Pods[i]
		if pod.Node != "" && pod.Node != a.Node {
			continue
		}
		if d := enroll.Decide(a.snapshot.Namespace(pod.Namespace), pod, a.Enroll); d.Enrolled {
			wanted[pod.Ref()] = pod
		}
	}
	return wanted
}

// enrollPods brings the enrolled pods of this node in line with what is wanted. Where a pod changed its place or
// its identity, what the kernel enforces stays and is adopted, so that it is never open in between, nor when it
// cannot be enrolled again.
func (a *Agent) enrollPods(wanted map[string]*source.Pod) {
	a.unresolved = false
	for ref, w := range a.byPod {
		switch pod := wanted[ref]; {
		case pod == nil:
			a.unenroll(w)
		case !samePlace(pod, w.pod):
			a.letGo(w)
		}
	}
	for ref, pod := range wanted {
		if a.byPod[ref] != nil {
			continue
		}
		if err := a.enrollPod(pod); err != nil {
			a.unresolved = true
			a.notEnrolled(ref, err)
		}
	}
	for ref := range a.unenrollable {
		if wanted[ref] == nil {
			delete(a.unenrollable, ref)
		}
	}
	a.dropAdopted()
}

func samePlace(a, b *source.Pod) bool {
	return a.NetnsPath == b.NetnsPath && a.ServiceAccount == b.ServiceAccount && slices.Equal(a.Addresses, b.Addresses)
}

func (a *Agent) notEnrolled(ref string, err error) {
	if a.unenrollable[ref] != err.Error() {
		a.unenrollable[ref] = err.Error()
		a.log.Error("pod not enrolled", "workload", ref, "error", err)
	}
}

// enrollPod makes the pod's policy, listeners and programs stand, in that order: it is enforced before
// anything of it is reachable.
func (a *Agent) enrollPod(pod *source.Pod) error {
	if pod.NetnsPath == "" {
		return fmt.Errorf("its network namespace is not known: annotate the pod with %s", source.NetnsAnnotation)
	}
	id, err := spiffeid.FromSegments(a.TrustDomain, "ns", pod.Namespace, "sa", pod.ServiceAccount)
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	netns, err := enroll.OpenNetns(pod.NetnsPath, pod.Addresses)
	if err != nil {
		return err
	}
	cookie, err := datapath.NetnsCookie(netns.File())
	if err != nil {
		netns.Close()
		return err
	}
	if other := a.workloads[cookie]; other != nil {
		netns.Close()
		return fmt.Errorf("its network namespace %s is already that of %s", pod.NetnsPath, other.pod.Ref())
	}
	w := &workload{id: cookie, pod: pod, identity: id, netns: netns}
	if err := a.attach(w); err != nil {
		w.close()
		return err
	}
	a.workloads[cookie], a.byPod[pod.Ref()] = w, w
	a.moved = true
	delete(a.unenrollable, pod.Ref())
	a.keeper.Use(id)
	a.announce(w)
	a.closePlaintext(w)
	a.log.Info("pod enrolled", "workload", pod.Ref(), "identity", id.String(), "netns", pod.NetnsPath, "cookie", cookie)
	a.logPolicy(w)
	return nil
}

// attach leaves in the kernel whatever it managed when it fails: that only ever refuses more.
func (a *Agent) attach(w *workload) error {
	modes, err := a.firstModes(w)
	if err != nil {
		return err
	}
	if err := a.path.SetPolicy(w.id, modes); err != nil {
		return fmt.Errorf("policy: %w", err)
	}
	w.modes = modes
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
		w.listeners = append(w.listeners, listener{s.slot, socket})
		if err := a.path.SetListener(w.id, s.slot, socket); err != nil {
			return fmt.Errorf("listener: %w", err)
		}
	}
	return nil
}

// unenroll returns the pod to plain networking.
func (a *Agent) unenroll(w *workload) {
	if _, err := a.path.CloseDeliveries(w.netns.File(), w.id); err != nil {
		a.log.Error("deliveries not closed", "workload", w.pod.Ref(), "error", err)
	}
	if err := a.path.Detach(w.id); err != nil {
		a.log.Error("pod not detached", "workload", w.pod.Ref(), "error", err)
	}
	a.letGo(w)
	a.log.Info("pod no longer enrolled", "workload", w.pod.Ref())
}

// letGo gives up all of a pod but what the kernel enforces.
func (a *Agent) letGo(w *workload) {
	delete(a.workloads, w.id)
	delete(a.byPod, w.pod.Ref())
	delete(a.reported, "policy of "+w.pod.Ref())
	a.moved = true
	for s := range a.sessions {
		s.forgetRoutes(w.id)
	}
	a.broadcast(outgoing{message: goneMessage(w.id)})
	if a.keeper.Release(w.identity) {
		a.broadcast(svidGoneMessage(w.identity))
	}
	w.close()
}

// dropAdopted removes what was left of pods that are no more. While the namespace of a wanted pod is not known,
// any of it may be that pod's protection, and all of it stays. So it does while an object cannot be read, which may
// be the pod or its Namespace.
func (a *Agent) dropAdopted() {
	if a.unresolved || len(a.snapshot.Problems) > 0 {
		return
	}
	cookies, err := a.path.Workloads()
	if err != nil {
		a.log.Error("adopted workloads not listed", "error", err)
		return
	}
	for _, cookie := range cookies {
		if a.workloads[cookie] != nil {
			continue
		}
		if err := a.path.Detach(cookie); err != nil {
			a.log.Error("adopted workload not removed", "cookie", cookie, "error", err)
		}
	}
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
