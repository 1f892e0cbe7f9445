package kube

import (
	"net/netip"
	"slices"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// endpointSlice is what is kept of an EndpointSlice.
type endpointSlice struct {
	key       objectKey
	service   objectKey
	ports     []slicePort
	endpoints []endpointAddress
	hinted    bool // any endpoint has hints
}

type slicePort struct {
	name   string
	number uint16
}

type endpointAddress struct {
	address netip.Addr
	node    string
	ready   bool
	ending  bool // not ready, but it still serves while it terminates
	hints   *hints
}

// hints tell for whom an endpoint is meant.
type hints struct{ nodes, zones []string }

func convertSlice(o runtime.Object) any {
	k, ok := o.(*discovery.EndpointSlice)
	if !ok || k.AddressType != discovery.AddressTypeIPv4 && k.AddressType != discovery.AddressTypeIPv6 {
		return nil
	}
	owner := k.Labels[discovery.LabelServiceName]
	if owner == "" {
		return nil
	}
	s := &endpointSlice{
		key:       objectKey{k.Namespace, k.Name},
		service:   objectKey{share(k.Namespace), share(owner)},
		endpoints: make([]endpointAddress, 0, len(k.Endpoints)),
	}
	for _, p := range k.Ports {
		if p.Protocol != nil && *p.Protocol != core.ProtocolTCP || p.Port == nil || *p.Port < 1 || *p.Port > 65535 {
			continue
		}
		port := slicePort{number: uint16(*p.Port)}
		if p.Name != nil {
			port.name = share(*p.Name)
		}
		s.ports = append(s.ports, port)
	}
	for i := range k.Endpoints {
		s.add(&k.Endpoints[i])
	}
	return s
}

// add takes over an endpoint that could be used. Of its addresses only the first counts, as they are all the same pod's.
func (s *endpointSlice) add(e *discovery.Endpoint) {
	c := e.Conditions
	serving := c.Serving == nil || *c.Serving
	out := endpointAddress{
		ready:  c.Ready == nil || *c.Ready,
		ending: serving && c.Terminating != nil && *c.Terminating,
	}
	if len(e.Addresses) == 0 || !out.ready && !out.ending {
		return
	}
	a := appendAddress(nil, e.Addresses[0])
	if len(a) == 0 {
		return
	}
	out.address = a[0]
	if e.NodeName != nil {
		out.node = share(*e.NodeName)
	}
	if h := e.Hints; h != nil && len(h.ForZones)+len(h.ForNodes) > 0 {
		s.hinted = true
		out.hints = &hints{}
		for _, z := range h.ForZones {
			out.hints.zones = append(out.hints.zones, share(z.Name))
		}
		for _, n := range h.ForNodes {
			out.hints.nodes = append(out.hints.nodes, share(n.Name))
		}
	}
	s.endpoints = append(s.endpoints, out)
}

type sliceTable struct{ *serviceTables }

func (t sliceTable) set(k objectKey, v any) {
	t.remove(k)
	s := v.(*endpointSlice)
	t.owner[k] = s.service
	t.slices[s.service] = append(t.slices[s.service], s)
	t.changed[s.service] = struct{}{}
}

func (t sliceTable) remove(k objectKey) {
	owner, known := t.owner[k]
	if !known {
		return
	}
	delete(t.owner, k)
	rest := slices.DeleteFunc(t.slices[owner], func(s *endpointSlice) bool { return s.key == k })
	if t.slices[owner] = rest; len(rest) == 0 {
		delete(t.slices, owner)
	}
	t.changed[owner] = struct{}{}
}

// candidate is an endpoint with the port that the Service's port is there.
type candidate struct {
	*endpointAddress
	port uint16
}

// endpoints chooses what the Service's port of that name leads to from this node, as kube-proxy would.
func (t *serviceTables) endpoints(s *service, all []*endpointSlice, port string) []netip.AddrPort {
	var found []candidate
	for _, slice := range all {
		i := slices.IndexFunc(slice.ports, func(p slicePort) bool { return p.name == port })
		if i < 0 {
			continue
		}
		for j := range slice.endpoints {
			if e := &slice.endpoints[j]; !s.onlyLocal || e.node == t.node {
				found = append(found, candidate{e, slice.ports[i].number})
			}
		}
	}
	chosen := only(found, func(c candidate) bool { return c.ready })
	switch {
	case len(chosen) == 0:
		chosen = only(found, func(c candidate) bool { return c.ending })
	case !s.onlyLocal:
		chosen = t.meantForUs(chosen)
	}
	out := make([]netip.AddrPort, 0, len(chosen))
	for _, c := range chosen {
		out = append(out, netip.AddrPortFrom(c.address, c.port))
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

// meantForUs follows hints if all endpoints have them and some are for this node, or else for its zone.
func (t *serviceTables) meantForUs(all []candidate) []candidate {
	for _, mine := range []struct {
		hints func(*hints) []string
		name  string
	}{
		{func(h *hints) []string { return h.nodes }, t.node},
		{func(h *hints) []string { return h.zones }, t.zone},
	} {
		if mine.name == "" || slices.ContainsFunc(all, func(c candidate) bool { return c.hints == nil || len(mine.hints(c.hints)) == 0 }) {
			continue
		}
		if some := only(all, func(c candidate) bool { return slices.Contains(mine.hints(c.hints), mine.name) }); len(some) > 0 {
			return some
		}
	}
	return all
}

func only(all []candidate, keep func(candidate) bool) []candidate {
	var some []candidate
	for _, c := range all {
		if keep(c) {
			some = append(some, c)
		}
	}
	return some
}
