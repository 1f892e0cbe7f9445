package observe

import (
	"container/list"
	"maps"
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

// edges has the one that was used last in front.
type edges struct {
	by    map[edgeKey]*list.Element // of *Edge
	order *list.List
}

func newEdges() edges { return edges{by: map[edgeKey]*list.Element{}, order: list.New()} }

func (x *edges) add(e *Event, fresh bool) {
	k := edgeKey{e.Source.name(), e.Destination.name(), e.Destination.Port, e.Inbound}
	element := x.by[k]
	if element == nil {
		element = x.order.PushFront(&Edge{Source: k.source, Destination: k.destination, Port: k.port, Inbound: k.inbound,
			Carried: map[Carried]Tally{}, First: e.Time})
		x.by[k] = element
	}
	x.order.MoveToFront(element)
	edge := element.Value.(*Edge)
	edge.Last = e.Time
	if fresh {
		t := edge.Carried[e.Carried]
		edge.Carried[e.Carried] = Tally{Count: t.Count + max(e.Count, 1), Last: e.Time, Reason: e.Reason}
	}
	if !e.Open {
		edge.Sent += e.Sent
		edge.Received += e.Received
	}
	if x.order.Len() > maxEdges {
		oldest := x.order.Remove(x.order.Back()).(*Edge)
		delete(x.by, edgeKey{oldest.Source, oldest.Destination, oldest.Port, oldest.Inbound})
	}
}

// Edges are those of which something was seen since then, the latest first.
func (r *Recorder) Edges(since time.Time) []Edge {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []Edge
	for element := r.edges.order.Front(); element != nil; element = element.Next() {
		e := *element.Value.(*Edge)
		if e.Last.Before(since) {
			break
		}
		e.Carried = maps.Clone(e.Carried)
		all = append(all, e)
	}
	return all
}
