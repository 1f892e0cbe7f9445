package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/enroll"
	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/observe"
	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/policy"
)

// trafficPrefix is that of annotations by which a sidecar is told to leave ports or ranges alone.
const trafficPrefix = "traffic.sidecar.istio.io/"

// place is how a pod stands on this node.
type place struct {
	router
	pod      *source.Pod
	enrolled *workload // nil: it is not. Only what never changes of it is read beside the loop
	modes    policy.Modes
	problem  string // why it is not enrolled although it is to be
	wanted   bool
	tunnels  int
}

// placeOf looks a pod of this node up.
func (i inspector) placeOf(ctx context.Context, name string) (*place, error) {
	p := &place{}
	if err := i.inspect(ctx, func(a *Agent) (err error) {
		p.router, err = a.frozen()
		return err
	}); err != nil {
		return nil, err
	}
	pod, err := podNamed(p.snapshot, name)
	if err != nil {
		return nil, err
	}
	if p.snapshot.LocalPod(pod.Ref()) == nil {
		return nil, notFound(fmt.Sprintf("pod %s is on node %s, not on %s", pod.Ref(), pod.Node, i.agent.Node))
	}
	p.pod = pod
	return p, i.inspect(ctx, func(a *Agent) error {
		a.standingOf(p)
		return nil
	})
}

func (a *Agent) standingOf(p *place) {
	ref := p.pod.Ref()
	p.tunnels = len(a.sessions)
	_, p.wanted = a.wanted[ref]
	p.problem = a.unenrollable[ref]
	if w := a.byPod[ref]; w != nil {
		p.enrolled, p.pod, p.modes = w, w.pod, w.modes
	}
}

// DescribePod implements admin.DescribeNode.
func (i inspector) DescribePod(ctx context.Context, name string) (*admin.PodDescription, error) {
	p, err := i.placeOf(ctx, name)
	if err != nil {
		return nil, err
	}
	d := p.describe()
	d.Node, d.CertSource = i.agent.Node, i.agent.keeper.Issuer()
	if p.enrolled != nil {
		if d.Certificate, err = certificateOf(i.agent.keeper.Status(), d.Identity); err != nil {
			return nil, err
		}
		d.Warnings = append(d.Warnings, certificateWarnings(d.Certificate)...)
	}
	if o := i.agent.observer; o != nil {
		d.Lately = lately(o.memory.Edges(time.Time{}), d.Pod)
	}
	return d, nil
}

// lately is who connected to a pod, and how, of edges that come the latest first. It has a few of them.
func lately(edges []observe.Edge, pod string) []admin.RecentPeer {
	var all []admin.RecentPeer
	for _, e := range edges {
		if e.Destination != pod || !e.Inbound {
			continue
		}
		for _, carried := range slices.Sorted(maps.Keys(e.Carried)) {
			tally := e.Carried[carried]
			all = append(all, admin.RecentPeer{Peer: e.Source, Port: e.Port, Carried: string(carried), Connections: tally.Count, Last: tally.Last})
		}
		if len(all) >= maxListed {
			break
		}
	}
	return firstOf(all)
}

// certificateOf leaves out the certificates themselves, which `culvert certs` shows.
func certificateOf(all []identity.Status, id string) (*admin.SVID, error) {
	for _, s := range all {
		if s.ID.String() != id {
			continue
		}
		svid, err := svidForPeople(s)
		svid.Workloads = []string{}
		for n := range svid.Chain {
			svid.Chain[n].DER = nil
		}
		return &svid, err
	}
	return nil, nil
}

func certificateWarnings(s *admin.SVID) []string {
	switch {
	case s == nil || len(s.Chain) == 0 && !s.Failing:
		return []string{"it has no certificate yet"}
	case len(s.Chain) == 0:
		return []string{"it has no certificate, so that no mTLS connection can be made: " + s.LastError}
	case s.Failing:
		return []string{"its certificate cannot be renewed: " + s.LastError}
	}
	return nil
}

func (p *place) describe() *admin.PodDescription {
	decision := enroll.Decide(p.snapshot.Namespace(p.pod.Namespace), p.pod, p.enroll)
	x := p.policies.Explain(policyWorkload(p.pod))
	d := &admin.PodDescription{
		Pod: p.pod.Ref(), ServiceAccount: p.pod.ServiceAccount, Addresses: []string{},
		Enrolled: p.enrolled != nil, Reason: decision.Reason,
		Default: p.port(0, &x), Ports: []admin.PortDescription{}, Levels: []admin.PolicyLevel{},
		Services: []admin.PodService{}, Warnings: []string{},
	}
	if p.enrolled != nil {
		d.Identity = p.enrolled.identity.String()
	}
	for _, address := range p.pod.Addresses {
		d.Addresses = append(d.Addresses, address.Unmap().String())
	}
	d.Services = p.services()
	for _, port := range p.ports(&x, d.Services) {
		d.Ports = append(d.Ports, p.port(port, &x))
	}
	for _, l := range x.Levels {
		d.Levels = append(d.Levels, admin.PolicyLevel{
			Level: l.Level.String(), Winner: l.Winner.String(), Mode: l.Mode.String(),
			Losers: refNames(firstOf(l.Losers)), LosersCount: len(l.Losers),
		})
	}
	d.Ignored = refNames(firstOf(x.Ignored))
	d.Warnings = append(d.Warnings, p.warnings(d)...)
	return d
}

func refNames(refs []policy.Ref) []string {
	var all []string
	for _, r := range refs {
		all = append(all, r.String())
	}
	return all
}

// ports are those that anyone has something to say about.
func (p *place) ports(x *policy.Explanation, services []admin.PodService) []uint16 {
	all := slices.Clone(p.pod.ContainerPorts)
	for _, number := range p.pod.Ports {
		all = append(all, number)
	}
	for number := range x.Ports {
		all = append(all, number)
	}
	for _, s := range services {
		for _, port := range s.Ports {
			all = append(all, port.Target)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func (p *place) port(number uint16, x *policy.Explanation) admin.PortDescription {
	d := x.ForPort(number)
	port := admin.PortDescription{
		Port: number, Mode: d.Mode.String(), Policy: d.Policy.String(),
		Declared: slices.Contains(p.pod.ContainerPorts, number),
	}
	for name, n := range p.pod.Ports {
		if n == number {
			port.Names = append(port.Names, name)
		}
	}
	slices.Sort(port.Names)
	if inForce := p.modes.ForPort(number); p.enrolled != nil && inForce != d.Mode {
		port.InForce = inForce.String()
	}
	return port
}

// services are those that lead to the pod.
func (p *place) services() []admin.PodService {
	all := []admin.PodService{}
	for s := range p.snapshot.Services() {
		if !s.LeadsTo(p.pod) {
			continue
		}
		one := admin.PodService{Service: s.Ref(), Ports: []admin.PodServicePort{}}
		for _, port := range s.Ports {
			for _, target := range targets(port, p.pod) {
				one.Ports = append(one.Ports, admin.PodServicePort{Port: port.Port, Target: target, Rules: p.callerRules(s, port.Port)})
			}
		}
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b admin.PodService) int { return cmp.Compare(a.Service, b.Service) })
	return all
}

// targets are the ports of the pod that a Service's port leads to.
func targets(port source.ServicePort, pod *source.Pod) []uint16 {
	var all []uint16
	for _, e := range port.Endpoints {
		if slices.Contains(pod.Addresses, e.Addr().Unmap()) {
			all = append(all, e.Port())
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// callerRules are what DestinationRules ask of callers of a Service's port: of all, and of those of whom a rule in their
// own namespace, or one with a selector, asks something else.
func (r *router) callerRules(s *source.Service, port uint16) []admin.CallerRule {
	service := policy.Ref{Namespace: s.Namespace, Name: s.Name}
	elsewhere := r.rules.Lookup(policy.Workload{}, service, port)
	var all []admin.CallerRule
	add := func(callers string, d policy.RuleDecision) {
		all = append(all, admin.CallerRule{Callers: callers, Rule: d.Rule.String(), Action: d.Client.String(), Reason: d.Reason})
	}
	if elsewhere.Rule != (policy.Ref{}) {
		add("all others", elsewhere)
	}
	seen := map[string]bool{}
	rules := r.snapshot.AllRules()
	for i := range rules {
		rule := &rules[i]
		for _, w := range callersOf(rule) {
			callers := "namespace " + w.Namespace
			if len(w.Labels) > 0 {
				callers += ", labels " + labelText(w.Labels)
			}
			if seen[callers] {
				continue
			}
			seen[callers] = true
			if d := r.rules.Lookup(w, service, port); d.Rule != (policy.Ref{}) && d.Rule != elsewhere.Rule {
				add(callers, d)
			}
		}
	}
	slices.SortFunc(all, func(a, b admin.CallerRule) int { return cmp.Compare(a.Callers, b.Callers) })
	if len(all) == 1 && elsewhere.Rule != (policy.Ref{}) {
		all[0].Callers = "all"
	}
	return all
}

// callersOf are those of whom a rule may ask what it asks of nobody else: in its own namespace, and in those that it is
// exported to by name.
func callersOf(rule *policy.DestinationRule) []policy.Workload {
	all := []policy.Workload{{Namespace: rule.Namespace, Labels: rule.Selector}}
	for _, to := range rule.ExportTo {
		if to != "." && to != "*" && to != rule.Namespace {
			all = append(all, policy.Workload{Namespace: to})
		}
	}
	return all
}

func labelText(labels map[string]string) string {
	all := make([]string, 0, len(labels))
	for k, v := range labels {
		all = append(all, k+"="+v)
	}
	slices.Sort(all)
	return strings.Join(all, ",")
}

// warnings are what its owner may not expect.
func (p *place) warnings(d *admin.PodDescription) []string {
	var all []string
	add := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	strict := d.Default.Mode == policy.Strict.String() || slices.ContainsFunc(d.Ports, func(x admin.PortDescription) bool { return x.Mode == policy.Strict.String() })
	switch {
	case d.Enrolled && p.tunnels == 0:
		add("no tunnel is connected to the node's agent: it can make no new connection to the mesh, and takes no mTLS")
	case !d.Enrolled && p.wanted:
		add("it is to be enrolled and is not: %s", cmp.Or(p.problem, "its network namespace is looked for"))
	case !d.Enrolled && strict:
		add("a policy wants STRICT of it, which nobody enforces in a pod outside the mesh")
	}
	if d.Enrolled && p.pod.Redirection == source.RedirectionAbsent {
		add("its annotation %s is missing: other nodes send plaintext to all but its STRICT ports", source.RedirectionAnnotation)
	}
	if p.snapshot.PolicyUnreadable(p.pod.Namespace, p.root) {
		add("a policy that may apply to it cannot be read: nothing is loosened until it can")
	}
	for _, port := range d.Ports {
		_, byPolicy := p.policies.Effective(policyWorkload(p.pod)).Ports[port.Port]
		switch {
		case port.Port == hbonePort:
			add("port %d is the mesh's own: while the pod is enrolled, nobody reaches the application there", hbonePort)
		case byPolicy && !port.Declared && len(p.pod.ContainerPorts) > 0:
			add("policy %s names port %d, which no container declares: ports of policies are the containers', not the Services'", port.Policy, port.Port)
		}
	}
	var unused []string
	for key := range p.pod.Annotations {
		if strings.HasPrefix(key, trafficPrefix) {
			unused = append(unused, key)
		}
	}
	slices.Sort(unused)
	for _, key := range firstOf(unused) {
		add("annotation %s is a sidecar's: it has no effect here", key)
	}
	for _, s := range d.Services {
		for _, port := range s.Ports {
			mesh := p.inMesh(p.pod, p.policies.Effective(policyWorkload(p.pod)).ForPort(port.Target).Mode)
			mode := p.policies.Effective(policyWorkload(p.pod)).ForPort(port.Target).Mode
			all = append(all, mismatches(s.Service, port.Port, port.Rules, []admin.EndpointDescription{{InMesh: mesh, Mode: mode.String()}})...)
		}
	}
	return all
}
