package agent

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/policy"
)

// maxShownEndpoints bounds the endpoints of one port that are described; all are counted.
const maxShownEndpoints = 100

// DescribeService implements admin.DescribeNode.
func (i inspector) DescribeService(ctx context.Context, name string) (*admin.ServiceDescription, error) {
	var r router
	if err := i.inspect(ctx, func(a *Agent) (err error) {
		r, err = a.frozen()
		return err
	}); err != nil {
		return nil, err
	}
	s, err := serviceNamed(r.snapshot, name)
	if err != nil {
		return nil, fmt.Errorf("%w (a headless one is known by its ready endpoints alone)", err)
	}
	d := r.describeService(s)
	d.Node = i.agent.Node
	return d, nil
}

func (r *router) describeService(s *source.Service) *admin.ServiceDescription {
	d := &admin.ServiceDescription{
		Service: s.Ref(), Headless: len(s.Addresses) == 0, Addresses: []string{},
		Ports: []admin.ServicePortDescription{}, Warnings: []string{},
	}
	for _, a := range s.Addresses {
		d.Addresses = append(d.Addresses, a.Unmap().String())
	}
	for _, a := range s.External {
		d.External = append(d.External, a.Unmap().String())
	}
	for _, port := range s.Ports {
		p := admin.ServicePortDescription{Name: port.Name, Port: port.Port, Target: port.Target,
			Endpoints: []admin.EndpointDescription{}, EndpointsCount: len(port.Endpoints), Rules: r.callerRules(s, port.Port)}
		all := make([]admin.EndpointDescription, 0, len(port.Endpoints))
		for _, e := range port.Endpoints {
			one := r.describeEndpoint(e)
			if one.InMesh {
				p.InMesh++
			}
			all = append(all, one)
		}
		p.Endpoints = all[:min(len(all), maxShownEndpoints)]
		d.Warnings = append(d.Warnings, endpointWarnings(s.Ref(), port.Port, all)...)
		d.Warnings = append(d.Warnings, mismatches(s.Ref(), port.Port, p.Rules, all)...)
		d.Ports = append(d.Ports, p)
	}
	if len(s.Ports) == 0 {
		d.Warnings = append(d.Warnings, "it has no TCP port, and the mesh carries TCP only")
	}
	return d
}

func (r *router) describeEndpoint(at netip.AddrPort) admin.EndpointDescription {
	e := admin.EndpointDescription{Address: at.String()}
	pod := r.snapshot.PodByAddress(at.Addr())
	if pod == nil {
		return e
	}
	d := r.policies.Effective(policyWorkload(pod)).ForPort(at.Port())
	e.Pod, e.Node, e.InMesh = pod.Ref(), pod.Node, r.guarded(at.Addr())
	e.Mode, e.Policy = d.Mode.String(), d.Policy.String()
	return e
}

// endpointWarnings are about endpoints that differ from each other, or from what policies want of them.
func endpointWarnings(service string, port uint16, all []admin.EndpointDescription) []string {
	at := fmt.Sprintf("%s:%d", service, port)
	if len(all) == 0 {
		return []string{at + " has no ready endpoint: connections are refused"}
	}
	var warnings []string
	outside := only(all, func(e admin.EndpointDescription) bool { return !e.InMesh })
	strict := only(all, func(e admin.EndpointDescription) bool { return e.Mode == policy.Strict.String() })
	unenforced := only(outside, func(e admin.EndpointDescription) bool { return e.Mode == policy.Strict.String() })
	if len(unenforced) > 0 {
		warnings = append(warnings, fmt.Sprintf("%s: a policy wants STRICT of %s, which nobody enforces outside the mesh", at, shareOf(unenforced, all)))
	}
	if n := len(outside); n > 0 && n < len(all) {
		warnings = append(warnings, fmt.Sprintf("%s: %s are not in the mesh: a part of its connections is plaintext", at, shareOf(outside, all)))
	}
	if n := len(strict); n > 0 && n < len(all) {
		warnings = append(warnings, fmt.Sprintf("%s: %s are STRICT and the others are not", at, shareOf(strict, all)))
	}
	return warnings
}

// mismatches are what rules ask of callers and endpoints do not take.
func mismatches(service string, port uint16, rules []admin.CallerRule, all []admin.EndpointDescription) []string {
	var warnings []string
	for _, rule := range rules {
		add := func(found []admin.EndpointDescription, format string) {
			if len(found) > 0 {
				warnings = append(warnings, fmt.Sprintf("%s:%d: DestinationRule %s (callers: %s) "+format+": refused",
					service, port, rule.Rule, rule.Callers, shareOf(found, all)))
			}
		}
		switch rule.Action {
		case policy.Mutual.String():
			add(only(all, func(e admin.EndpointDescription) bool { return !e.InMesh }), "wants mutual TLS of %s outside the mesh")
			add(only(all, func(e admin.EndpointDescription) bool { return e.InMesh && e.Mode == policy.Disable.String() }), "wants mutual TLS of %s in DISABLE")
		case policy.Plaintext.String():
			add(only(all, func(e admin.EndpointDescription) bool { return e.InMesh && e.Mode == policy.Strict.String() }), "sends plaintext to %s in STRICT")
		case policy.Originate.String():
			add(all, "wants TLS of its own to %s, which agents do not originate")
		}
	}
	return warnings
}

func only(all []admin.EndpointDescription, keep func(admin.EndpointDescription) bool) []admin.EndpointDescription {
	var some []admin.EndpointDescription
	for _, e := range all {
		if keep(e) {
			some = append(some, e)
		}
	}
	return some
}

func shareOf(some, all []admin.EndpointDescription) string {
	name := cmp.Or(some[0].Pod, some[0].Address)
	if len(all) == 1 {
		return cmp.Or(name, "this pod")
	}
	return fmt.Sprintf("%d of %d endpoints (such as %s)", len(some), len(all), name)
}
