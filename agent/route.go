package agent

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/agent/enroll"
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
	if service := a.snapshot.ServiceByAddress(d.address); service != nil && a.serves(service, d.address) {
		a.resolveService(answer, w, service, d.address)
		return answer, true
	}
	pod := a.snapshot.PodByAddress(d.address.Addr())
	rule := policy.RuleDecision{}
	if pod != nil {
		if service, port := a.snapshot.HeadlessService(pod.Namespace, d.address); service != nil {
			rule = a.rules.Lookup(policyWorkload(w.pod), policy.Ref{Namespace: service.Namespace, Name: service.Name}, port)
		}
	}
	answer.Endpoints = []*control.Endpoint{a.endpoint(w, d.address, rule)}
	return answer, pod != nil
}

func (a *Agent) resolveService(answer *control.Route, w *workload, service *source.Service, to netip.AddrPort) {
	for _, p := range service.Ports {
		if p.Port != to.Port() {
			continue
		}
		rule := a.rules.Lookup(policyWorkload(w.pod), policy.Ref{Namespace: service.Namespace, Name: service.Name}, p.Port)
		for _, e := range sample(p.Endpoints) {
			// An IPv4 address of a dual-stack Service leads to IPv4 endpoints only.
			if e.Addr().Is4() == to.Addr().Is4() {
				answer.Endpoints = append(answer.Endpoints, a.endpoint(w, e, rule))
			}
		}
		if len(answer.Endpoints) == 0 {
			answer.Reason = "Service " + service.Namespace + "/" + service.Name + " has no ready endpoint"
		}
		return
	}
	answer.Reason = "Service " + service.Namespace + "/" + service.Name + " has no such port"
}

// sample keeps answers within a message. It always picks the same ones of the same list, so that an unchanged
// Service gives an unchanged answer.
func sample(all []netip.AddrPort) []netip.AddrPort {
	if len(all) <= maxEndpoints {
		return all
	}
	chosen := make([]netip.AddrPort, maxEndpoints)
	for i := range chosen {
		chosen[i] = all[i*len(all)/maxEndpoints]
	}
	return chosen
}

// serves reports whether the Service answers for the whole address: at an external one, which may be a node's,
// only for its ports.
func (a *Agent) serves(service *source.Service, to netip.AddrPort) bool {
	if !slices.Contains(service.External, to.Addr().Unmap()) {
		return true
	}
	if a.snapshot.PodByAddress(to.Addr()) != nil {
		return false // anybody may write a pod's address into a Service of his own
	}
	return slices.ContainsFunc(service.Ports, func(p source.ServicePort) bool { return p.Port == to.Port() })
}

// endpoint decides how one address is reached: mTLS towards an enrolled pod whose port takes it, plaintext
// towards others, unless a DestinationRule says otherwise.
func (a *Agent) endpoint(from *workload, to netip.AddrPort, rule policy.RuleDecision) *control.Endpoint {
	e := &control.Endpoint{Address: to.Addr().AsSlice(), Port: uint32(to.Port())}
	pod := a.snapshot.PodByAddress(to.Addr())
	if pod != nil {
		e.Workload = pod.Ref()
	}
	identity, byPolicy := a.mutual(pod, to.Port())
	e.Reason = byPolicy
	if rule.Client != policy.Auto {
		e.Reason = "DestinationRule " + rule.Rule.String()
	}
	switch {
	case pod != nil && pod.Ref() == from.pod.Ref():
		// A Service led back to the pod that asked: what stays within a pod is never touched.
		e.Action, e.Reason = control.Action_ACTION_DIRECT, "the pod itself"
	case rule.Client == policy.Plaintext:
		e.Action = control.Action_ACTION_DIRECT
	case rule.Client == policy.Originate:
		e.Action = control.Action_ACTION_REFUSE
		e.Reason += ": this agent does not originate such TLS, and never sends plaintext in its place"
	case identity != "":
		e.Action, e.Identity = control.Action_ACTION_HBONE, identity
		if local := a.byPod[pod.Ref()]; local != nil {
			e.LocalWorkload = local.id
		}
	case rule.Client == policy.Mutual:
		e.Action = control.Action_ACTION_REFUSE
		e.Reason += " wants mutual TLS, which the destination does not take"
	default:
		e.Action = control.Action_ACTION_DIRECT
	}
	return e
}

// mutual returns the identity that a pod proves on a port; none when it is not enrolled or does not take mTLS
// there. byPolicy is what decided.
func (a *Agent) mutual(pod *source.Pod, port uint16) (identity, byPolicy string) {
	if pod == nil {
		return "", "destination is not in the mesh"
	}
	d := a.policies.Effective(policyWorkload(pod)).ForPort(port)
	if !a.inMesh(pod, d.Mode) {
		return "", "destination is not in the mesh"
	}
	if d.Mode == policy.Disable {
		return "", d.Policy.String()
	}
	id, err := spiffeid.FromSegments(a.TrustDomain, "ns", pod.Namespace, "sa", pod.ServiceAccount)
	if err != nil {
		return "", "destination has no valid identity"
	}
	return id.String(), d.Policy.String()
}

// inMesh reports whether a tunnel stands before the pod. On this node the agent knows; of others it is what their
// node says by the annotation, not what labels wish for. But a STRICT port takes nothing else: there the wish is
// enough, so that a missing annotation never sends plaintext to it.
func (a *Agent) inMesh(pod *source.Pod, mode policy.Mode) bool {
	if pod.Redirection == source.RedirectionEnabled || a.byPod[pod.Ref()] != nil {
		return true
	}
	if pod.Redirection == source.RedirectionAbsent && mode != policy.Strict {
		return false
	}
	return enroll.Decide(a.snapshot.Namespace(pod.Namespace), pod, a.Enroll).Enrolled
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
