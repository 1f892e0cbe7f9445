package source

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
)

// equal reports whether nothing differs that anyone looks at: most updates of a Pod are of its status alone.
func (p *Pod) equal(o *Pod) bool {
	return p.Namespace == o.Namespace && p.Name == o.Name && p.UID == o.UID && p.RuntimeUID == o.RuntimeUID && p.Created.Equal(o.Created) &&
		p.Redirection == o.Redirection && p.Owner == o.Owner && p.ServiceAccount == o.ServiceAccount && p.Node == o.Node &&
		p.HostNetwork == o.HostNetwork && p.NetnsPath == o.NetnsPath && slices.Equal(p.Addresses, o.Addresses) &&
		maps.Equal(p.Labels, o.Labels) && maps.Equal(p.Annotations, o.Annotations) &&
		slices.Equal(p.Containers, o.Containers) && maps.Equal(p.Ports, o.Ports) &&
		slices.Equal(p.ContainerPorts, o.ContainerPorts)
}

// claims are the addresses that are the pod's own.
func (p *Pod) claims() []netip.Addr {
	if p.HostNetwork {
		return nil
	}
	own := make([]netip.Addr, 0, len(p.Addresses))
	for _, a := range p.Addresses {
		if a = a.Unmap(); a.IsValid() && !slices.Contains(own, a) {
			own = append(own, a)
		}
	}
	return own
}

func (s *Service) equal(o *Service) bool {
	return s.Namespace == o.Namespace && s.Name == o.Name && maps.Equal(s.Selector, o.Selector) &&
		slices.Equal(s.Addresses, o.Addresses) && slices.Equal(s.External, o.External) &&
		slices.EqualFunc(s.Ports, o.Ports, func(a, b ServicePort) bool {
			return a.Name == b.Name && a.Port == b.Port && a.Target == b.Target && slices.Equal(a.Endpoints, b.Endpoints)
		})
}

// addresses are those at which the Service is found, each once.
func (s *Service) addresses() iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		all := slices.Concat(s.Addresses, s.External)
		for i := range all {
			all[i] = all[i].Unmap()
		}
		slices.SortFunc(all, netip.Addr.Compare)
		for _, a := range slices.Compact(all) {
			if a.IsValid() && !yield(a) {
				return
			}
		}
	}
}

// headlessEndpoints are the endpoints of a Service that has no cluster address, with the port they stand for.
func (s *Service) headlessEndpoints() iter.Seq2[netip.AddrPort, uint16] {
	return func(yield func(netip.AddrPort, uint16) bool) {
		if len(s.Addresses) > 0 {
			return
		}
		for _, p := range s.Ports {
			for _, e := range p.Endpoints {
				if !yield(netip.AddrPortFrom(e.Addr().Unmap(), e.Port()), p.Port) {
					return
				}
			}
		}
	}
}
