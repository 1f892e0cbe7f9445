package file

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	core "k8s.io/api/core/v1"

	"github.com/culvert-mesh/culvert/agent/source"
)

// assemble makes the contents of objects that do not repeat, and computes what Services lead to.
func assemble(objects []*object) source.Contents {
	var c source.Contents
	index := podIndex{}
	for _, o := range objects {
		if o.pod != nil {
			c.Pods = append(c.Pods, o.pod.Pod)
			index.add(o.pod)
		}
	}
	for _, o := range objects {
		switch {
		case o.namespace != nil:
			c.Namespaces = append(c.Namespaces, *o.namespace)
		case o.service != nil:
			c.Services = append(c.Services, index.withEndpoints(o.service))
		case o.policy != nil:
			c.Policies = append(c.Policies, *o.policy)
		case o.rule != nil:
			c.Rules = append(c.Rules, *o.rule)
		}
	}
	return c
}

type podLabel struct{ namespace, key, value string }

// podIndex finds pods by one label, so that many Services and many pods do not multiply.
type podIndex map[podLabel][]*pod

func (x podIndex) add(p *pod) {
	for k, v := range p.Labels {
		at := podLabel{p.Namespace, k, v}
		x[at] = append(x[at], p)
	}
}

// selected returns the pods with all labels of the selector. Without a selector nothing is selected.
func (x podIndex) selected(namespace string, selector map[string]string) []*pod {
	var fewest []*pod
	first := true
	for k, v := range selector {
		if candidates := x[podLabel{namespace, k, v}]; first || len(candidates) < len(fewest) {
			fewest, first = candidates, false
		}
	}
	var out []*pod
	for _, p := range fewest {
		if hasLabels(p.Labels, selector) {
			out = append(out, p)
		}
	}
	return out
}

func hasLabels(labels, wanted map[string]string) bool {
	for k, v := range wanted {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

func (x podIndex) withEndpoints(s *service) source.Service {
	out := s.Service
	pods := x.selected(s.Namespace, s.Selector)
	for _, port := range s.ports {
		if port.Protocol != "" && port.Protocol != core.ProtocolTCP {
			continue
		}
		out.Ports = append(out.Ports, source.ServicePort{
			Name: port.Name, Port: uint16(port.Port), Target: target(port), Endpoints: endpoints(s, port, pods),
		})
	}
	return out
}

func endpoints(s *service, port core.ServicePort, pods []*pod) []netip.AddrPort {
	var out []netip.AddrPort
	for _, p := range pods {
		if !p.ready && !s.unready {
			continue
		}
		number := targetPort(port, p)
		if number == 0 {
			continue
		}
		for _, a := range p.Addresses {
			if s.reaches(a) {
				out = append(out, netip.AddrPortFrom(a, number))
			}
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

// target is the targetPort in words, with its default applied.
func target(port core.ServicePort) string {
	if port.TargetPort.StrVal != "" {
		return port.TargetPort.StrVal
	}
	return strconv.Itoa(int(cmp.Or(port.TargetPort.IntVal, port.Port)))
}

// targetPort is where the Service's port leads in that pod, or 0 when the pod has no port of that name.
func targetPort(port core.ServicePort, p *pod) uint16 {
	if port.TargetPort.StrVal != "" {
		return p.Ports[port.TargetPort.StrVal]
	}
	return uint16(cmp.Or(port.TargetPort.IntVal, port.Port))
}

// reaches reports whether the Service has endpoints of that address family: of its own addresses, or
// of the families that it names, or of all when it does neither.
func (s *service) reaches(a netip.Addr) bool {
	if len(s.Addresses) > 0 {
		return slices.ContainsFunc(s.Addresses, func(own netip.Addr) bool { return own.Is4() == a.Is4() })
	}
	if len(s.families) > 0 {
		family := core.IPv6Protocol
		if a.Is4() {
			family = core.IPv4Protocol
		}
		return slices.Contains(s.families, family)
	}
	return true
}
