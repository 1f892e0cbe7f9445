package tunnel

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/tunnel/control"
)

const (
	routeWait      = 3 * time.Second
	routeMost      = 4096 // of one workload
	routeEndpoints = 256
)

var errNoRoute = errors.New("no route: the agent did not answer in time")

// route is what a workload shall do about one destination. It does not change once made.
type route struct {
	endpoints []endpoint
	reason    string
	service   string // "namespace/name" of the one that the destination belongs to
}

type endpoint struct {
	address  netip.AddrPort
	action   control.Action
	identity spiffeid.ID
	local    uint64
	workload string
	naming   naming
	reason   string
}

// pick returns one endpoint at random; without any, one that refuses.
func (r *route) pick() endpoint {
	if len(r.endpoints) == 0 {
		return endpoint{action: control.Action_ACTION_REFUSE, reason: r.reason}
	}
	return r.endpoints[rand.IntN(len(r.endpoints))]
}

// parseRoute reads a route. An endpoint that makes no sense refuses: leaving it out would send its share
// of the connections elsewhere without a word.
func parseRoute(m *control.Route) *route {
	r := &route{reason: m.GetReason(), service: m.GetService()}
	for _, e := range m.GetEndpoints()[:min(len(m.GetEndpoints()), routeEndpoints)] {
		parsed, err := parseEndpoint(e)
		if err != nil {
			parsed.action = control.Action_ACTION_REFUSE
			parsed.reason = "endpoint not understood: " + err.Error()
		}
		if parsed.reason == "" {
			parsed.reason = m.GetReason()
		}
		if n := len(r.endpoints); n > 0 && parsed.naming == r.endpoints[n-1].naming {
			parsed.naming = r.endpoints[n-1].naming // of one Deployment: one copy is enough
		}
		r.endpoints = append(r.endpoints, parsed)
	}
	return r
}

func parseEndpoint(e *control.Endpoint) (endpoint, error) {
	out := endpoint{
		action: e.GetAction(), local: e.GetLocalWorkload(), workload: e.GetWorkload(), naming: parseNaming(e.GetNaming()), reason: e.GetReason(),
	}
	var err error
	switch out.action {
	case control.Action_ACTION_HBONE:
		if out.identity, err = spiffeid.FromString(e.GetIdentity()); err != nil {
			return out, fmt.Errorf("identity: %w", err)
		}
	case control.Action_ACTION_DIRECT:
	default:
		out.action = control.Action_ACTION_REFUSE
		out.address, _ = control.ToAddrPort(e.GetAddress(), e.GetPort())
		return out, nil
	}
	if out.address, err = control.ToAddrPort(e.GetAddress(), e.GetPort()); err != nil {
		return out, err
	}
	if out.address.Port() == 0 {
		return out, errors.New("port 0")
	}
	return out, nil
}

// routes are the routes of one workload, asked for on demand and kept while they are used.
type routes struct {
	ask func(destination netip.AddrPort, forget bool) (queued bool) // must not block

	mu      sync.Mutex
	entries map[netip.AddrPort]*list.Element
	recent  list.List // of *routeEntry, most recently used first
}

type routeEntry struct {
	destination netip.AddrPort
	route       *route        // nil: not answered yet
	answered    chan struct{} // closed with the first answer
	asked       time.Time
}

func newRoutes(ask func(netip.AddrPort, bool) bool) *routes {
	return &routes{ask: ask, entries: map[netip.AddrPort]*list.Element{}}
}

// lookup returns the route, waiting a bounded time for the agent's first answer.
func (r *routes) lookup(ctx context.Context, destination netip.AddrPort) (*route, error) {
	entry, known := r.entry(destination)
	if known != nil {
		return known, nil
	}
	timeout := time.NewTimer(routeWait)
	defer timeout.Stop()
	select {
	case <-entry.answered:
		r.mu.Lock()
		defer r.mu.Unlock()
		return entry.route, nil
	case <-timeout.C:
		return nil, errNoRoute
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (r *routes) entry(destination netip.AddrPort) (*routeEntry, *route) {
	r.mu.Lock()
	defer r.mu.Unlock()
	element := r.entries[destination]
	if element == nil {
		entry := &routeEntry{destination: destination, answered: make(chan struct{})}
		element = r.recent.PushFront(entry)
		r.entries[destination] = element
		r.evict()
	}
	r.recent.MoveToFront(element)
	entry := element.Value.(*routeEntry)
	if entry.route == nil && time.Since(entry.asked) > routeWait {
		entry.asked = time.Now()
		r.ask(destination, false)
	}
	return entry, entry.route
}

func (r *routes) evict() {
	for r.recent.Len() > routeMost {
		entry := r.recent.Remove(r.recent.Back()).(*routeEntry)
		delete(r.entries, entry.destination)
		r.ask(entry.destination, true)
	}
}

// set takes an answer. One that nobody asked for crossed a forget on its way, and is dropped.
func (r *routes) set(destination netip.AddrPort, answer *route) {
	r.mu.Lock()
	defer r.mu.Unlock()
	element := r.entries[destination]
	if element == nil {
		return
	}
	entry := element.Value.(*routeEntry)
	first := entry.route == nil
	entry.route = answer
	if first {
		close(entry.answered)
	}
}

// reconnected asks a new agent for every route that is in use, so that it tells of their changes. One that cannot be
// asked for now is dropped and asked for when it is next used: nobody would tell when it is outdated.
func (r *routes) reconnected() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for destination, element := range r.entries {
		entry := element.Value.(*routeEntry)
		entry.asked = time.Now()
		if !r.ask(destination, false) && entry.route != nil {
			r.recent.Remove(element)
			delete(r.entries, destination)
		}
	}
}
