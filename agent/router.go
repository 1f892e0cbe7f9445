package agent

import (
	"net/netip"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/enroll"
	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/policy"
	"github.com/culvert-mesh/culvert/tunnel/control"
)

// router knows all that a route depends on. The loop answers tunnels with it, and people are answered with one that no
// longer changes (Agent.frozen): what they are told is what a tunnel would be.
type router struct {
	node        string
	root        string
	trustDomain spiffeid.TrustDomain
	enroll      enroll.Options
	snapshot    *source.Snapshot
	policies    *policy.Set
	rules       *policy.RuleSet
	enrolled    func(ref string) (workload uint64, ok bool) // on this node
}

// router is the agent's own, for the loop.
func (a *Agent) router() router {
	return router{
		node: a.Node, root: a.RootNamespace, trustDomain: a.TrustDomain, enroll: a.Enroll,
		snapshot: a.snapshot, policies: a.policies, rules: a.rules,
		enrolled: func(ref string) (uint64, bool) {
			w := a.byPod[ref]
			if w == nil {
				return 0, false
			}
			return w.id, true
		},
	}
}

// frozen is the router as it is now, for those beside the loop.
func (a *Agent) frozen() (router, error) {
	if a.snapshot == nil {
		return router{}, errNoSnapshot
	}
	ids := make(map[string]uint64, len(a.byPod))
	for ref, w := range a.byPod {
		ids[ref] = w.id
	}
	r := a.router()
	r.enrolled = func(ref string) (uint64, bool) {
		id, ok := ids[ref]
		return id, ok
	}
	return r, nil
}

// route decides what an enrolled pod does about a destination. known is false when nothing explains the address. Without
// an endpoint, reason says why.
func (r *router) route(from *source.Pod, to netip.AddrPort) (endpoints []*control.Endpoint, reason string, known bool) {
	if service := r.snapshot.ServiceByAddress(to); service != nil && r.serves(service, to) {
		endpoints, reason = r.service(from, service, to)
		return endpoints, reason, true
	}
	pod := r.snapshot.PodByAddress(to.Addr())
	rule := policy.RuleDecision{}
	if pod != nil {
		if service, port := r.snapshot.HeadlessService(pod.Namespace, to); service != nil {
			rule = r.rules.Lookup(policyWorkload(from), policy.Ref{Namespace: service.Namespace, Name: service.Name}, port)
		}
	}
	return []*control.Endpoint{r.endpoint(from, to, rule)}, "", pod != nil
}

func (r *router) service(from *source.Pod, service *source.Service, to netip.AddrPort) (endpoints []*control.Endpoint, reason string) {
	for _, p := range service.Ports {
		if p.Port != to.Port() {
			continue
		}
		rule := r.rules.Lookup(policyWorkload(from), policy.Ref{Namespace: service.Namespace, Name: service.Name}, p.Port)
		for _, e := range sample(p.Endpoints) {
			// An IPv4 address of a dual-stack Service leads to IPv4 endpoints only.
			if e.Addr().Is4() == to.Addr().Is4() {
				endpoints = append(endpoints, r.endpoint(from, e, rule))
			}
		}
		if len(endpoints) == 0 {
			reason = "Service " + service.Ref() + " has no ready endpoint"
		}
		return endpoints, reason
	}
	return nil, "Service " + service.Ref() + " has no such port"
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
func (r *router) serves(service *source.Service, to netip.AddrPort) bool {
	if !slices.Contains(service.External, to.Addr().Unmap()) {
		return true
	}
	if r.snapshot.PodByAddress(to.Addr()) != nil {
		return false // anybody may write a pod's address into a Service of his own
	}
	return slices.ContainsFunc(service.Ports, func(p source.ServicePort) bool { return p.Port == to.Port() })
}

// endpoint decides how one address is reached: mTLS towards an enrolled pod whose port takes it, plaintext
// towards others, unless a DestinationRule says otherwise.
func (r *router) endpoint(from *source.Pod, to netip.AddrPort, rule policy.RuleDecision) *control.Endpoint {
	e := &control.Endpoint{Address: to.Addr().AsSlice(), Port: uint32(to.Port())}
	pod := r.snapshot.PodByAddress(to.Addr())
	if pod != nil {
		e.Workload, e.Naming = pod.Ref(), namingOf(pod)
	}
	identity, byPolicy := r.mutual(pod, to.Port())
	e.Reason = byPolicy
	if rule.Client != policy.Auto {
		e.Reason = "DestinationRule " + rule.Rule.String()
	}
	switch {
	case pod != nil && pod.Ref() == from.Ref():
		// A Service led back to the pod that asked: what stays within a pod is never touched.
		e.Action, e.Reason = control.Action_ACTION_DIRECT, "the pod itself"
	case rule.Client == policy.Plaintext:
		e.Action = control.Action_ACTION_DIRECT
	case rule.Client == policy.Originate:
		e.Action = control.Action_ACTION_REFUSE
		e.Reason += ": this agent does not originate such TLS, and never sends plaintext in its place"
	case identity != "":
		e.Action, e.Identity = control.Action_ACTION_HBONE, identity
		if local, ok := r.enrolled(pod.Ref()); ok {
			e.LocalWorkload = local
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
func (r *router) mutual(pod *source.Pod, port uint16) (identity, byPolicy string) {
	if pod == nil {
		return "", "destination is not in the mesh"
	}
	d := r.policies.Effective(policyWorkload(pod)).ForPort(port)
	if !r.inMesh(pod, d.Mode) {
		return "", "destination is not in the mesh"
	}
	if d.Mode == policy.Disable {
		return "", d.Policy.String()
	}
	id, err := spiffeid.FromSegments(r.trustDomain, "ns", pod.Namespace, "sa", pod.ServiceAccount)
	if err != nil {
		return "", "destination has no valid identity"
	}
	return id.String(), d.Policy.String()
}

// inMesh reports whether a tunnel stands before the pod. On this node the agent knows; of others it is what their
// node says by the annotation, not what labels wish for. But a STRICT port takes nothing else: there the wish is
// enough, so that a missing annotation never sends plaintext to it.
func (r *router) inMesh(pod *source.Pod, mode policy.Mode) bool {
	if _, here := r.enrolled(pod.Ref()); here || pod.Redirection == source.RedirectionEnabled {
		return true
	}
	if pod.Redirection == source.RedirectionAbsent && mode != policy.Strict {
		return false
	}
	return enroll.Decide(r.snapshot.Namespace(pod.Namespace), pod, r.enroll).Enrolled
}

// guarded reports whether something stands before the pod that enforces its modes. To a client that the pod's labels wish
// for it may be enough; a server that nothing enforces takes what comes. On this node the agent knows, whatever the pod's
// annotation says.
func (r *router) guarded(address netip.Addr) bool {
	pod := r.snapshot.PodByAddress(address)
	if pod == nil {
		return false
	}
	_, here := r.enrolled(pod.Ref())
	switch {
	case here || pod.Node == r.node:
		return here
	case pod.Redirection == source.RedirectionEnabled:
		return true
	}
	return pod.Redirection == source.RedirectionUnknown && enroll.Decide(r.snapshot.Namespace(pod.Namespace), pod, r.enroll).Enrolled
}
