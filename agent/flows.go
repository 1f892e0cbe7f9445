package agent

import (
	"context"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/datapath"
	"github.com/culvert-mesh/culvert/agent/enroll"
	"github.com/culvert-mesh/culvert/agent/observe"
	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/tunnel/control"
)

const (
	// maxReason bounds what a tunnel may say of a connection.
	maxReason = 500
	// maxFlows is what one message of a tunnel may carry, and maxFlowing how many may wait for the loop.
	maxFlows   = 64
	maxFlowing = 16
)

// observer keeps what is seen of connections, and tells people.
type observer struct {
	agent   *Agent
	memory  *observe.Recorder
	own     atomic.Pointer[map[netip.Addr]bool] // addresses of the node itself; nil: not known yet
	lookout lookout
}

// newObserver remembers in that file what it sees; "" is nowhere.
func newObserver(a *Agent, path string) *observer {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // without it all boots are the same one
	return &observer{agent: a, lookout: newLookout(), memory: observe.New(observe.Options{Path: path, Boot: strings.TrimSpace(string(boot)), Logger: a.log})}
}

// take is called by those who read what a tunnel says. A tunnel that was taken over must not be able to keep the loop
// busy, or to fill the agent's memory: what is too much is lost.
func (o *observer) take(s *session, m *control.Flows) {
	lost := m.GetLost() + uint64(len(m.GetFlows()))
	if len(m.GetFlows()) > maxFlows {
		o.memory.Lost(lost)
		return
	}
	if s.flowing.Add(1) > maxFlowing {
		s.flowing.Add(-1)
		o.memory.Lost(lost)
		return
	}
	select {
	case o.agent.events <- func() {
		s.flowing.Add(-1)
		o.flows(m)
	}:
	default:
		s.flowing.Add(-1)
		o.memory.Lost(lost)
	}
}

// flows runs on the loop.
func (o *observer) flows(m *control.Flows) {
	if m.GetLost() > 0 {
		o.memory.Lost(m.GetLost())
	}
	v := o.view()
	for _, f := range m.GetFlows() {
		source, sourceErr := toEnd(f.GetSourceAddress(), f.GetSourcePort())
		destination, destinationErr := toEnd(f.GetDestinationAddress(), f.GetDestinationPort())
		how := carriedOf(f.GetCarried())
		if sourceErr != nil || destinationErr != nil || how == "" {
			o.memory.Lost(1)
			continue
		}
		source.Workload, source.Identity = text(f.GetSourceWorkload()), text(f.GetSourceIdentity())
		destination.Workload, destination.Identity = text(f.GetDestinationWorkload()), text(f.GetDestinationIdentity())
		e := observe.Event{
			Number: f.GetNumber(), Inbound: f.GetInbound(), Carried: how, Open: f.GetOpen(), Policy: text(f.GetPolicy()),
			Reason: text(f.GetReason()), Sent: f.GetSent(), Received: f.GetReceived(),
			Opened: instantOf(f.GetOpenedUnixNanoseconds()), Closed: instantOf(f.GetClosedUnixNanoseconds()),
		}
		o.record(v, e, f.GetWorkload(), source, destination)
	}
}

// refused runs on the loop.
func (o *observer) refused(r datapath.Refusal) {
	w := o.agent.workloads[r.Cookie]
	if w == nil {
		return
	}
	now := time.Now()
	o.record(o.view(), observe.Event{
		Inbound: true, Carried: observe.Refused, Policy: w.policyFor(r.Destination.Port()), Reason: "plaintext to a STRICT port",
		Opened: now, Closed: now, // r.Suppressed are refusals of all workloads
	}, r.Cookie, end(r.Source), end(r.Destination))
}

// record completes what the other side cannot know.
func (o *observer) record(v *view, e observe.Event, workload uint64, source, destination observe.End) {
	var local *observe.Workload
	near, far := &source, &destination
	if e.Inbound {
		near, far = far, near
	}
	if w := o.agent.workloads[workload]; w != nil {
		observed := observedWorkload(w.pod)
		local, near.Workload = &observed, w.pod.Ref()
	}
	peer := v.peer(far.Address)
	switch {
	case far.Identity != "": // what was proved counts more than whose the address is
		peer = provedPeer(peer, far)
	case peer.Kind == observe.PeerNode:
		far.Node = peer.Name
	}
	if far.Workload == "" && peer.Kind == observe.PeerPod {
		far.Workload = peer.Name
	}
	e.Source, e.Destination = source, destination
	switch {
	case e.Inbound:
		o.memory.Flow(e, local, peer)
	case e.Carried == observe.SameNode:
		o.memory.Flow(e, o.serverHere(v, destination.Address), provedPeer(v.peer(source.Address), &source))
	default:
		o.memory.Flow(e, nil, observe.Peer{})
	}
}

// provedPeer is who came, with the identity that was proved.
func provedPeer(p observe.Peer, e *observe.End) observe.Peer {
	if e.Identity == "" {
		return p
	}
	if p.Kind != observe.PeerPod {
		p = observe.Peer{Kind: observe.PeerPod, Name: e.Workload, Address: e.Address}
	}
	p.Identity, p.Enrolled = e.Identity, true
	return p
}

// serverHere is the workload of this node that has the address.
func (o *observer) serverHere(v *view, address netip.Addr) *observe.Workload {
	pod := v.pod(address)
	if pod == nil || o.agent.byPod[pod.Ref()] == nil {
		return nil
	}
	w := observedWorkload(pod)
	return &w
}

func toEnd(address []byte, port uint32) (observe.End, error) {
	if len(address) == 0 && port == 0 {
		return observe.End{}, nil
	}
	a, err := control.ToAddrPort(address, port)
	return end(a), err
}

func end(a netip.AddrPort) observe.End { return observe.End{Address: a.Addr().Unmap(), Port: a.Port()} }

func carriedOf(c control.Carried) observe.Carried {
	switch c {
	case control.Carried_CARRIED_MTLS:
		return observe.MTLS
	case control.Carried_CARRIED_SAME_NODE:
		return observe.SameNode
	case control.Carried_CARRIED_PLAINTEXT:
		return observe.Plaintext
	case control.Carried_CARRIED_REFUSED:
		return observe.Refused
	case control.Carried_CARRIED_FAILED:
		return observe.Failed
	}
	return ""
}

// text is what others say, without what would steer a terminal.
func text(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, strings.ToValidUTF8(s[:min(len(s), maxReason)], "?"))
}

func instantOf(unixNanoseconds int64) time.Time {
	if unixNanoseconds <= 0 {
		return time.Time{}
	}
	return time.Unix(0, unixNanoseconds)
}

func observedWorkload(p *source.Pod) observe.Workload {
	return observe.Workload{Namespace: p.Namespace, ServiceAccount: p.ServiceAccount, Labels: p.Labels, Pod: p.Name}
}

// view is what tells whose an address is.
type view struct {
	node     string
	own      map[netip.Addr]bool
	snapshot *source.Snapshot // nil: nothing is known yet
	ranges   []netip.Prefix
	here     func(ref string) bool // enrolled on this node
	enroll   enroll.Options
}

// view is for the loop.
func (o *observer) view() *view {
	a := o.agent
	v := &view{node: a.Node, snapshot: a.snapshot, enroll: a.Enroll, here: func(ref string) bool { return a.byPod[ref] != nil }}
	if own := o.own.Load(); own != nil {
		v.own = *own
	}
	if a.snapshot != nil {
		v.ranges = a.ranges()
	}
	return v
}

// detached is for beside the loop.
func (v *view) detached(a *Agent) *view {
	d := *v
	refs := make(map[string]bool, len(a.byPod))
	for ref := range a.byPod {
		refs[ref] = true
	}
	d.here = func(ref string) bool { return refs[ref] }
	return &d
}

func (v *view) peer(address netip.Addr) observe.Peer {
	address = address.Unmap()
	p := observe.Peer{Kind: observe.PeerOutside, Address: address}
	switch pod := v.pod(address); {
	case pod != nil:
		p.Kind, p.Name, p.ServiceAccount, p.Enrolled = observe.PeerPod, pod.Ref(), pod.ServiceAccount, v.enrolled(pod)
	case v.own[address]:
		p.Kind, p.Name = observe.PeerNode, v.node
	case inRanges(v.ranges, address):
		p.Kind = observe.PeerUnknown
	}
	return p
}

func (v *view) pod(address netip.Addr) *source.Pod {
	if v.snapshot == nil {
		return nil
	}
	return v.snapshot.PodByAddress(address)
}

// enrolled reports whether the pod's connections are captured by the mesh: what its node says, or else what its labels
// wish for.
func (v *view) enrolled(pod *source.Pod) bool {
	switch {
	case v.here(pod.Ref()) || pod.Redirection == source.RedirectionEnabled:
		return true
	case pod.Redirection == source.RedirectionAbsent:
		return false
	}
	return enroll.Decide(v.snapshot.Namespace(pod.Namespace), pod, v.enroll).Enrolled
}

// Flows implements admin.Flows.
func (o *observer) Flows(ctx context.Context, after uint64, wait time.Duration) (*admin.FlowList, error) {
	l := &admin.FlowList{Node: o.agent.Node, Lost: o.memory.LostEvents()}
	if wait <= 0 {
		l.Flows, l.Last, l.Missed = o.memory.Events(after)
		return l, nil
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var err error
	l.Flows, l.Last, l.Missed, err = o.memory.Wait(ctx, after)
	return l, err
}
