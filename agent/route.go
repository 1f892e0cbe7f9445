package agent

import (
	"net/netip"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/policy"
	"github.com/culvert-mesh/culvert/tunnel/control"
)

const (
	// unknownWait is how long a destination inside the mesh's ranges that no object explains is waited for,
	// so that a pod that has just started is not reached in plaintext.
	unknownWait = time.Second
	// maxEndpoints bounds an answer to what fits a message; of more, a random choice is given.
	maxEndpoints = 256
	// maxRoutes bounds what one tunnel may have asked for.
	maxRoutes = 1 << 16
)

// destination is what a tunnel asked about.
type destination struct {
	workload uint64
	address  netip.AddrPort
}

// route answers a request, and remembers it so that changes are told.
func (a *Agent) route(s *session, r *control.RouteRequest) {
	address, err := control.ToAddrPort(r.Address, r.Port)
	if err != nil {
		a.log.Warn("tunnel asked for a route to an impossible address", "error", err)
		return
	}
	d := destination{r.Workload, address}
	if r.Forget {
		delete(s.routes, d)
		return
	}
	_, again := s.routes[d]
	if !again && len(s.routes) >= maxRoutes {
		a.log.Warn("tunnel asked for too many routes", "most", maxRoutes)
		return
	}
	answer, known := a.resolve(d)
	s.routes[d] = answer
	if known {
		s.send(routeMessage(answer))
		return
	}
	if _, waits := s.unknown[d]; waits {
		return // the answer is under way
	}
	if again {
		s.send(routeMessage(answer)) // it was waited for already
		return
	}
	if s.unknown == nil {
		s.unknown = map[destination]struct{}{}
	}
	s.unknown[d] = struct{}{}
	// Not now: enrolment or a pod's address may be a moment behind.
	time.AfterFunc(unknownWait, func() {
		a.post(func() {
			delete(s.unknown, d)
			// Before the first snapshot there is nothing to say: the answer follows with it.
			if _, asked := s.routes[d]; !asked || a.snapshot == nil {
				return
			}
			answer, _ := a.resolve(d)
			s.routes[d] = answer
			s.send(routeMessage(answer))
		})
	})
}

// touched is what changed beside the snapshot: workloads that came, went, or have other labels.
type touched struct {
	addresses map[netip.Addr]struct{}
	workloads map[uint64]struct{}
}

// touchWorkload has the routes from and to a workload looked at again.
func (a *Agent) touchWorkload(w *workload) {
	if a.touched.workloads == nil {
		a.touched = touched{map[netip.Addr]struct{}{}, map[uint64]struct{}{}}
	}
	a.touched.workloads[w.id] = struct{}{}
	for _, address := range w.pod.Addresses {
		a.touched.addresses[address.Unmap()] = struct{}{}
	}
}

// updateRoutes tells each tunnel the answers that became other ones.
func (a *Agent) updateRoutes(c *source.Changes) {
	t := a.touched
	a.touched = touched{}
	_, mesh := c.Policies[a.RootNamespace]
	all := c.All || c.Rules || mesh
	if !all && len(c.Addresses)+len(c.Namespaces)+len(c.Policies)+len(t.workloads) == 0 {
		return
	}
	for s := range a.sessions {
		for d, was := range s.routes {
			if !all && !a.routeTouched(d, was, c, &t) {
				continue
			}
			now, known := a.resolve(d)
			if !proto.Equal(was, now) && known {
				s.routes[d] = now
				s.send(routeMessage(now))
			}
		}
	}
}

// routeTouched reports whether anything changed that the answer depends on.
func (a *Agent) routeTouched(d destination, was *control.Route, c *source.Changes, t *touched) bool {
	if _, ok := t.workloads[d.workload]; ok {
		return true
	}
	address := d.address.Addr().Unmap()
	if _, ok := t.addresses[address]; ok || c.Address(address) {
		return true
	}
	for _, e := range was.Endpoints {
		address, ok := netip.AddrFromSlice(e.Address)
		if !ok {
			return true
		}
		if _, ok := t.addresses[address.Unmap()]; ok || c.Address(address) {
			return true
		}
		if namespace, _, ok := strings.Cut(e.Workload, "/"); ok && c.Namespace(namespace) {
			return true
		}
	}
	return false
}

// resolve decides what a local workload does about a destination. known is false when nothing explains the
// address.
func (a *Agent) resolve(d destination) (answer *control.Route, known bool) {
	answer = &control.Route{Workload: d.workload, Address: d.address.Addr().AsSlice(), Port: uint32(d.address.Port())}
	w := a.workloads[d.workload]
	if w == nil || a.snapshot == nil {
		answer.Reason = "the workload is not enrolled here"
		return answer, w != nil
	}
	r := a.router()
	answer.Endpoints, answer.Reason, known = r.route(w.pod, d.address)
	r.name(answer, d.address)
	return answer, known
}

func wireMode(m policy.Mode) control.Mode {
	switch m {
	case policy.Disable:
		return control.Mode_MODE_DISABLE
	case policy.Permissive:
		return control.Mode_MODE_PERMISSIVE
	default:
		return control.Mode_MODE_STRICT
	}
}
