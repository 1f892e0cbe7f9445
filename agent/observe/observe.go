// Package observe is what an agent remembers of connections, for people to look at: the latest ones, who talks to whom,
// and who came to which workload in plaintext. Nothing is decided by it. It reads and writes nothing but its state file.
//
// Three memories, all bounded:
//
//	ring          the latest connections and refusals, numbered, for those who follow (ring.go)
//	edges         source, destination and port, with counts; oldest out (edges.go)
//	observations  who came to a workload's port, and how; kept across restarts and for days (observations.go, state.go)
package observe

import (
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// Carried is how a connection went.
type Carried string

// Failed is every end of a connection that is not by policy.
const (
	MTLS      Carried = "mtls"
	SameNode  Carried = "same-node" // authorised as on the wire, joined without TLS
	Plaintext Carried = "plaintext"
	Refused   Carried = "refused"
	Failed    Carried = "failed"
)

// Event is a connection that opened, ended or was turned away.
type Event struct {
	// Sequence grows with every event of a node, across restarts of its agent, too.
	Sequence uint64    `json:"sequence"`
	Time     time.Time `json:"time"` // when the agent heard of it

	Number      uint64    `json:"number,omitempty"` // of the tunnel; the same when it opens and when it ends
	Inbound     bool      `json:"inbound"`
	Carried     Carried   `json:"carried"`
	Open        bool      `json:"open,omitempty"` // it has just opened; else it is over
	Source      End       `json:"source"`
	Destination End       `json:"destination"`
	Policy      string    `json:"policy,omitempty"` // that decided
	Reason      string    `json:"reason,omitempty"`
	Sent        uint64    `json:"sent,omitempty"` // bytes from source to destination
	Received    uint64    `json:"received,omitempty"`
	Opened      time.Time `json:"opened,omitzero"`
	Closed      time.Time `json:"closed,omitzero"`
	// Count is how many connections the event stands for, when they are more than one.
	Count uint64 `json:"count,omitempty"`
}

// End is one side of a connection. What is not known is empty.
type End struct {
	Address  netip.Addr `json:"address,omitzero"`
	Port     uint16     `json:"port,omitempty"`
	Workload string     `json:"workload,omitempty"` // "namespace/pod"
	Identity string     `json:"identity,omitempty"` // proved
	Node     string     `json:"node,omitempty"`     // the address is this node's
}

// name is the best that is known of an end.
func (e *End) name() string {
	switch {
	case e.Workload != "":
		return e.Workload
	case e.Identity != "":
		return e.Identity
	case e.Node != "":
		return "node " + e.Node
	case e.Address.IsValid():
		return e.Address.String()
	}
	return "unknown"
}

// Workload is an enrolled pod of the node, as far as it stays the same when the pod is replaced; Pod is the latest.
type Workload struct {
	Namespace      string            `json:"namespace"`
	ServiceAccount string            `json:"serviceAccount"`
	Labels         map[string]string `json:"labels,omitempty"`
	Pod            string            `json:"pod"`
}

// PeerKind says what an address belongs to.
type PeerKind string

// PeerUnknown is an address of the cluster that no pod has, or no longer.
const (
	PeerPod     PeerKind = "pod"
	PeerNode    PeerKind = "node"
	PeerOutside PeerKind = "outside"
	PeerUnknown PeerKind = "unknown"
)

// Peer is who came, as it was known when it came last.
type Peer struct {
	Kind           PeerKind   `json:"kind"`
	Name           string     `json:"name,omitempty"` // "namespace/pod", or the node's
	ServiceAccount string     `json:"serviceAccount,omitempty"`
	Identity       string     `json:"identity,omitempty"` // proved by mTLS
	Address        netip.Addr `json:"address,omitzero"`
	Enrolled       bool       `json:"enrolled,omitempty"`
}

// DefaultWindow is how long observations are kept.
const DefaultWindow = 7 * 24 * time.Hour

// Options configure a Recorder. All may be empty.
type Options struct {
	Path   string        // of the state file; empty: observations end with the process
	Boot   string        // which boot of the machine this is: what the kernel counted in another does not matter
	Window time.Duration // how long observations are kept; 0: DefaultWindow
	Logger *slog.Logger
}

// Recorder remembers. Its methods may be called concurrently and never wait for anything but each other and, Save and
// Wait apart, not for I/O.
type Recorder struct {
	path   string
	boot   string
	window time.Duration
	log    *slog.Logger
	saving sync.Mutex // held by Save; before mu

	mu     sync.Mutex
	ring   ring
	edges  edges
	told   told
	seen   observations
	floods floods
	lost   uint64 // events that never arrived
}

// New returns a Recorder that knows what its state file tells. A file that cannot be used is logged and left out.
func New(o Options) *Recorder {
	if o.Window <= 0 {
		o.Window = DefaultWindow
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Recorder{path: o.Path, boot: o.Boot, window: o.Window, log: o.Logger}
	now := time.Now()
	r.ring = newRing(now)
	r.edges = newEdges()
	r.floods = floods{}
	r.told = told{open: map[flowKey]struct{}{}}
	r.seen = newObservations(now)
	r.load(now)
	return r
}

// Flow records an event. server is the workload of this node that was connected to, nil if it is of another or not
// known; client is who came to it.
func (r *Recorder) Flow(e Event, server *Workload, client Peer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.Time = time.Now()
	fresh := r.told.fresh(&e)
	if !r.floods.admits(&e) {
		return
	}
	r.edges.add(&e, fresh)
	if server != nil && !e.Inbound { // both ends are of this node, and told once
		there := e
		there.Inbound = true
		r.edges.add(&there, fresh)
	}
	if server != nil && fresh {
		r.seen.add(r.seen.workload(*server, e.Time), e.Destination.Port, e.Carried, client, max(e.Count, 1), e.Time)
	}
	r.ring.add(e)
}

// Lost counts events that found no room on their way here.
func (r *Recorder) Lost(n uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lost += n
}
