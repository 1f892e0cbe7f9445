package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/enroll"
	"github.com/culvert-mesh/culvert/agent/observe"
	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/policy"
)

var errNoSnapshot = errors.New("agent has not read the cluster's state yet")

// judged is what an answer about readiness is made of. Nothing in it changes any more.
type judged struct {
	view     *view
	policies *policy.Set
	rules    *policy.RuleSet
	root     string
	waiting  map[string]string // pods that are to be enrolled, and why they are not
}

// Readiness implements admin.Ready. What the kernel knows is read for it: an answer must not miss what is open now.
func (o *observer) Readiness(ctx context.Context, namespace string, window time.Duration) (*admin.Readiness, error) {
	if o.agent.path != nil {
		if err := o.look(ctx, o.agent.path, fresh); err != nil {
			return nil, fmt.Errorf("plaintext connections not read: %w", err)
		}
	}
	var j judged
	err := inspector{agent: o.agent}.inspect(ctx, func(a *Agent) error {
		if a.snapshot == nil {
			return errNoSnapshot
		}
		j = judged{o.view().detached(a), a.policies, a.rules, cmp.Or(a.RootNamespace, policy.DefaultRootNamespace), maps.Clone(a.unenrollable)}
		return nil
	})
	if err != nil {
		return nil, err
	}
	r := j.readiness(o.memory, namespace, time.Now().Add(-window))
	if o.agent.path == nil {
		return r, nil
	}
	counters, err := o.agent.path.Counters()
	r.ProbesExcluded = counters["probe_accepted"]
	return r, err
}

func (j *judged) readiness(memory *observe.Recorder, namespace string, from time.Time) *admin.Readiness {
	s := j.view.snapshot
	r := &admin.Readiness{Form: admin.ReadinessForm, Node: j.view.node, EnrolledOn: j.view.enrolledOn(namespace), NodeAddresses: slices.SortedFunc(maps.Keys(j.view.own), netip.Addr.Compare),
		RootNamespace: j.root, UnreadablePolicies: s.UnreadablePolicies}
	r.Since, r.Dropped = memory.Since()
	workloads := j.workloads(r, memory, namespace, from)
	for _, x := range memory.Observations(from) {
		if w := workloads[x.Workload.Key()]; w != nil {
			port := portOf(w, x.Port)
			port.Peers = append(port.Peers, admin.ObservedPeer{Peer: x.Peer, Carried: x.Carried, Count: x.Count, First: x.First, Last: x.Last})
		}
	}
	services := sync.OnceValue(func() map[netip.AddrPort][]servicePort { return servicesByEndpoint(s) })
	names := map[string]bool{}
	for _, key := range slices.Sorted(maps.Keys(workloads)) {
		w := workloads[key]
		names[w.Namespace] = true
		slices.SortFunc(w.Ports, func(a, b admin.ObservedPort) int { return cmp.Compare(a.Port, b.Port) })
		for i := range w.Ports {
			for k := range w.Ports[i].Peers {
				j.explain(w, w.Ports[i].Port, &w.Ports[i].Peers[k], services)
			}
		}
		r.Workloads = append(r.Workloads, *w)
	}
	r.KnownNames = slices.Sorted(maps.Keys(j.names(namespace)))
	names[j.root] = true
	r.Policies = policiesOf(s, names)
	return r
}

// names are the namespaces of this node's pods; the one that was asked for if it exists anywhere.
func (j *judged) names(asked string) map[string]bool {
	names := map[string]bool{}
	if asked != "" && j.view.snapshot.HasNamespace(asked) {
		names[asked] = true
		return names
	}
	for _, pod := range j.view.snapshot.Local() {
		names[pod.Namespace] = true
	}
	return names
}

// workloads are those that are watched here, or were, by key.
func (j *judged) workloads(r *admin.Readiness, memory *observe.Recorder, namespace string, from time.Time) map[string]*admin.Observed {
	all := map[string]*admin.Observed{}
	for _, w := range memory.Watched() {
		if namespace == "" || w.Namespace == namespace {
			all[w.Key()] = &admin.Observed{Workload: w.Workload, Since: w.Since, Blind: w.Blind, Elsewhere: w.Nodes(from)}
		}
	}
	for ref, pod := range j.view.snapshot.Local() {
		switch {
		case namespace != "" && pod.Namespace != namespace:
		case j.view.here(ref):
			w := observedWorkload(pod)
			known := all[w.Key()]
			if known == nil {
				w.Labels = observe.Lasting(w.Labels)
				known = &admin.Observed{Workload: w, Since: time.Now(), Blind: time.Now()}
				all[w.Key()] = known
			}
			known.Pods = append(known.Pods, ref)
			for _, port := range pod.ContainerPorts {
				portOf(known, port).Declared = true
			}
		default:
			r.NotEnrolled = append(r.NotEnrolled, j.notEnrolled(ref, pod))
		}
	}
	for _, w := range all {
		slices.Sort(w.Pods)
	}
	slices.SortFunc(r.NotEnrolled, func(a, b admin.NotEnrolled) int { return cmp.Compare(a.Pod, b.Pod) })
	return all
}

func (j *judged) notEnrolled(ref string, pod *source.Pod) admin.NotEnrolled {
	d := enroll.Decide(j.view.snapshot.Namespace(pod.Namespace), pod, j.view.enroll)
	reason := d.Reason
	if d.Enrolled {
		reason = cmp.Or(j.waiting[ref], "is not enrolled yet")
	}
	return admin.NotEnrolled{Pod: ref, Reason: reason, Wanted: (d.Enrolled || d.Refused) && !pod.HostNetwork && len(pod.Addresses) > 0}
}

func portOf(w *admin.Observed, port uint16) *admin.ObservedPort {
	i := slices.IndexFunc(w.Ports, func(p admin.ObservedPort) bool { return p.Port == port })
	if i < 0 {
		i = len(w.Ports)
		w.Ports = append(w.Ports, admin.ObservedPort{Port: port})
	}
	return &w.Ports[i]
}

// explain says of a peer of the mesh why it came in plaintext.
func (j *judged) explain(w *admin.Observed, port uint16, p *admin.ObservedPeer, services func() map[netip.AddrPort][]servicePort) {
	if p.Carried != observe.Plaintext && p.Carried != observe.Refused || p.Kind != observe.PeerPod || p.Identity != "" {
		return
	}
	client := j.peerNow(&p.Peer)
	if client == nil || !j.view.enrolled(client) {
		return
	}
	p.EnrolledNow = true
	from := policyWorkload(client)
	for _, ref := range w.Pods {
		for _, address := range j.view.snapshot.LocalPod(ref).Addresses {
			endpoint := netip.AddrPortFrom(address.Unmap(), port)
			ways := services()[endpoint]
			if headless, servedAs := j.view.snapshot.HeadlessService(w.Namespace, endpoint); headless != nil {
				ways = append(slices.Clip(ways), servicePort{headless, servedAs})
			}
			for _, s := range ways {
				rule := j.rules.Lookup(from, policy.Ref{Namespace: s.service.Namespace, Name: s.service.Name}, s.port)
				if rule.Client == policy.Plaintext {
					p.Why = rule.Reason + " (Service " + s.service.Ref() + ")"
					return
				}
			}
		}
	}
	d := j.policies.Effective(policy.Workload{Namespace: w.Namespace, Name: w.Pod, Labels: w.Labels}).ForPort(port)
	switch {
	case d.Mode == policy.Disable:
		p.Why = "the port is DISABLE by " + d.Policy.String() + ": pods of the mesh use plaintext"
	case !p.Enrolled:
		p.Why = "it was not enrolled when it came last"
	default:
		p.Why = "nothing in force now explains it: a policy or DestinationRule that is gone since, or a connection from before it was enrolled"
	}
}

// peerNow is the pod at the peer's address, if it is still the same one or its successor.
func (j *judged) peerNow(p *observe.Peer) *source.Pod {
	pod := j.view.pod(p.Address)
	if pod == nil {
		return nil
	}
	if namespace, _, _ := strings.Cut(p.Name, "/"); pod.Namespace != namespace || pod.ServiceAccount != p.ServiceAccount {
		return nil
	}
	return pod
}

// servicePort is a Service's port that leads to an endpoint.
type servicePort struct {
	service *source.Service
	port    uint16
}

// servicesByEndpoint looks at every Service with an address. Headless ones are found by their endpoints.
func servicesByEndpoint(s *source.Snapshot) map[netip.AddrPort][]servicePort {
	all := map[netip.AddrPort][]servicePort{}
	seen := map[*source.Service]bool{}
	for address := range s.Addresses() {
		service := s.ServiceByAddress(netip.AddrPortFrom(address, 0))
		if service == nil || seen[service] {
			continue
		}
		seen[service] = true
		for _, p := range service.Ports {
			for _, e := range p.Endpoints {
				all[e] = append(all[e], servicePort{service, p.Port})
			}
		}
	}
	return all
}

func policiesOf(s *source.Snapshot, namespaces map[string]bool) []admin.Policy {
	all := []admin.Policy{}
	for _, namespace := range slices.Sorted(maps.Keys(namespaces)) {
		policies := slices.Clone(s.Policies(namespace))
		slices.SortFunc(policies, func(a, b policy.PeerAuthentication) int { return cmp.Compare(a.Name, b.Name) })
		for i := range policies {
			all = append(all, admin.NewPolicy(&policies[i]))
		}
	}
	return all
}
