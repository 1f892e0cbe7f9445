package observe

import (
	"container/list"
	"time"
)

// maxEdges is how many edges are kept.
const maxEdges = 1 << 14

// Edge is all connections from one end to a port of another, as one of the two nodes saw them.
type Edge struct {
	Source      string            `json:"source"` // "namespace/pod", an identity, "node NAME", or an address
	Destination string            `json:"destination"`
	Port        uint16            `json:"port"`
	Inbound     bool              `json:"inbound"` // seen at the destination
	Carried     map[Carried]Tally `json:"carried"`
	Sent        uint64            `json:"sent"` // bytes of the connections that are over
	Received    uint64            `json:"received"`
	First       time.Time         `json:"first"`
	Last        time.Time         `json:"last"`
}

// Tally counts connections.
type Tally struct {
	Count  uint64    `json:"count"`
	Last   time.Time `json:"last"`
	Reason string    `json:"reason,omitempty"` // of the last one
}

type edgeKey struct {
	source, destination string
	port                uint16
	inbound             bool
}

// edge has its tallies in a form that is copied fast.
type edge struct {
	Edge
	tallies [5]Tally // as ways
}

// edges has the one that was used last in front.
type edges struct {
	by    map[edgeKey]*list.Element // of *edge
	order *list.List
}

func newEdges() edges { return edges{by: map[edgeKey]*list.Element{}, order: list.New()} }

// ways are all of Carried.
func ways() [5]Carried { return [...]Carried{MTLS, SameNode, Plaintext, Refused, Failed} }

func (x *edges) add(e *Event, fresh bool) {
	k := edgeKey{e.Source.name(), e.Destination.name(), e.Destination.Port, e.Inbound}
	element := x.by[k]
	if element == nil {
		element = x.order.PushFront(&edge{Edge: Edge{Source: k.source, Destination: k.destination, Port: k.port, Inbound: k.inbound, First: e.Time}})
		x.by[k] = element
	}
	x.order.MoveToFront(element)
	at := element.Value.(*edge)
	at.Last = e.Time
	for i, way := range ways() {
		if fresh && way == e.Carried {
			at.tallies[i] = Tally{Count: at.tallies[i].Count + max(e.Count, 1), Last: e.Time, Reason: e.Reason}
		}
	}
	if !e.Open {
		at.Sent += e.Sent
		at.Received += e.Received
	}
	if x.order.Len() > maxEdges {
		oldest := x.order.Remove(x.order.Back()).(*edge)
		delete(x.by, edgeKey{oldest.Source, oldest.Destination, oldest.Port, oldest.Inbound})
	}
}

// since copies what is asked for, under the lock that the agent's loop waits for.
func (r *Recorder) since(since time.Time) []edge {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]edge, 0, r.edges.order.Len())
	for element := r.edges.order.Front(); element != nil; element = element.Next() {
		e := element.Value.(*edge)
		if e.Last.Before(since) {
			break
		}
		all = append(all, *e)
	}
	return all
}

// Edges are those of which something was seen since then, the latest first.
func (r *Recorder) Edges(since time.Time) []Edge {
	copied := r.since(since)
	all := make([]Edge, len(copied))
	for i := range copied {
		e := &copied[i]
		e.Carried = map[Carried]Tally{}
		for k, way := range ways() {
			if e.tallies[k].Count > 0 {
				e.Carried[way] = e.tallies[k]
			}
		}
		all[i] = e.Edge
	}
	return all
}
