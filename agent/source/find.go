package source

import (
	"iter"
	"net/netip"
	"slices"
)

// All are the pods of all nodes that have an address of their own or are of this node, each once and in no order. It
// looks at all of them: it is for people's questions.
func (s *Snapshot) All() iter.Seq[*Pod] {
	return func(yield func(*Pod) bool) {
		for _, p := range s.local.all() {
			if !yield(p) {
				return
			}
		}
		for a, p := range s.byAddress.all() {
			if s.LocalPod(p.Ref()) != nil || s.firstAddress(p) != a {
				continue
			}
			if !yield(p) {
				return
			}
		}
	}
}

// firstAddress is the one by which a pod with several counts. Another pod may own some of those that it claims.
func (s *Snapshot) firstAddress(p *Pod) netip.Addr {
	for _, a := range p.claims() {
		if s.PodByAddress(a) == p {
			return a
		}
	}
	return netip.Addr{}
}

// Services are those that have an address or, headless, an endpoint, each once and in no order. It looks at all of them,
// as All does.
func (s *Snapshot) Services() iter.Seq[*Service] {
	return func(yield func(*Service) bool) {
		seen := map[*Service]struct{}{}
		fresh := func(service *Service) bool {
			_, known := seen[service]
			seen[service] = struct{}{}
			return !known
		}
		for _, all := range s.virtual.all() {
			for _, service := range all {
				if fresh(service) && !yield(service) {
					return
				}
			}
		}
		for _, all := range s.headless.all() {
			for _, h := range all {
				if fresh(h.service) && !yield(h.service) {
					return
				}
			}
		}
	}
}

// LeadsTo reports whether the Service has the pod among its endpoints.
func (s *Service) LeadsTo(p *Pod) bool {
	return slices.ContainsFunc(s.Ports, func(port ServicePort) bool {
		return slices.ContainsFunc(port.Endpoints, func(e netip.AddrPort) bool { return slices.Contains(p.Addresses, e.Addr().Unmap()) })
	})
}
