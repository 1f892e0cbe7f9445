package kube

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/culvert-mesh/culvert/agent/source"
)

// service is a Service without its endpoints.
type service struct {
	source.Service      // its Ports have no endpoints
	onlyLocal      bool // internalTrafficPolicy Local
}

func convertService(o runtime.Object) any {
	k, ok := o.(*core.Service)
	if !ok {
		return nil
	}
	s := &service{Service: source.Service{Namespace: share(k.Namespace), Name: k.Name}}
	if k.Spec.Type == core.ServiceTypeExternalName {
		return s
	}
	s.Selector = k.Spec.Selector
	s.onlyLocal = k.Spec.InternalTrafficPolicy != nil && *k.Spec.InternalTrafficPolicy == core.ServiceInternalTrafficPolicyLocal
	for _, p := range k.Spec.Ports {
		if p.Protocol != "" && p.Protocol != core.ProtocolTCP || p.Port < 1 || p.Port > 65535 {
			continue
		}
		s.Ports = append(s.Ports, source.ServicePort{Name: share(p.Name), Port: uint16(p.Port), Target: target(p)})
	}
	texts := k.Spec.ClusterIPs
	if len(texts) == 0 {
		texts = []string{k.Spec.ClusterIP}
	}
	if texts[0] == core.ClusterIPNone {
		return s
	}
	for _, text := range texts {
		s.Addresses = appendAddress(s.Addresses, text)
	}
	if !s.onlyLocal && len(s.Addresses) > 0 {
		s.External = external(k)
	}
	return s
}

// target is the targetPort in words, with its default applied.
func target(port core.ServicePort) string {
	if port.TargetPort.StrVal != "" {
		return share(port.TargetPort.StrVal)
	}
	return share(strconv.Itoa(int(cmp.Or(port.TargetPort.IntVal, port.Port))))
}

// external are the addresses outside of the cluster that kube-proxy takes for the Service's own. A load balancer
// that has something to decide itself, by its clients' addresses or because it asked to (ipMode Proxy), is left alone.
func external(k *core.Service) []netip.Addr {
	var all []netip.Addr
	for _, text := range k.Spec.ExternalIPs {
		all = appendAddress(all, text)
	}
	if k.Spec.Type == core.ServiceTypeLoadBalancer && len(k.Spec.LoadBalancerSourceRanges) == 0 {
		for _, ingress := range k.Status.LoadBalancer.Ingress {
			if ingress.IPMode == nil || *ingress.IPMode == core.LoadBalancerIPModeVIP {
				all = appendAddress(all, ingress.IP)
			}
		}
	}
	all = slices.DeleteFunc(all, func(a netip.Addr) bool { return a.IsLinkLocalUnicast() })
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// serviceTables join Services with their EndpointSlices.
type serviceTables struct {
	index    *source.Index
	node     string
	services map[objectKey]*service
	slices   map[objectKey][]*endpointSlice // by Service
	owner    map[objectKey]objectKey        // of each slice
	cluster  map[netip.Addr]int             // how many Services have it as a cluster address
	outside  map[objectKey]struct{}         // Services with external addresses
	changed  map[objectKey]struct{}
	ranges   []netip.Prefix
	zone     string
}

func newServiceTables(index *source.Index, node string) *serviceTables {
	return &serviceTables{
		index: index, node: node,
		services: map[objectKey]*service{}, slices: map[objectKey][]*endpointSlice{}, owner: map[objectKey]objectKey{},
		cluster: map[netip.Addr]int{}, outside: map[objectKey]struct{}{}, changed: map[objectKey]struct{}{},
	}
}

type serviceTable struct{ *serviceTables }

func (t serviceTable) set(k objectKey, v any) {
	t.withdraw(k)
	s := v.(*service)
	t.services[k] = s
	for _, a := range s.Addresses {
		if t.cluster[a]++; t.cluster[a] == 1 {
			t.markOutside(a)
		}
	}
	if len(s.External) > 0 {
		t.outside[k] = struct{}{}
	}
	t.changed[k] = struct{}{}
}

func (t serviceTable) remove(k objectKey) {
	t.withdraw(k)
	delete(t.services, k)
	t.changed[k] = struct{}{}
}

func (t serviceTable) withdraw(k objectKey) {
	was := t.services[k]
	if was == nil {
		return
	}
	for _, a := range was.Addresses {
		if t.cluster[a]--; t.cluster[a] == 0 {
			delete(t.cluster, a)
			t.markOutside(a)
		}
	}
	delete(t.outside, k)
}

// markOutside marks the Services that claim the address from outside: whether they may have it just changed.
func (t *serviceTables) markOutside(a netip.Addr) {
	for k := range t.outside {
		if slices.Contains(t.services[k].External, a) {
			t.changed[k] = struct{}{}
		}
	}
}

// place says what the cluster's ranges are, and in which zone this node is.
func (t *serviceTables) place(ranges []netip.Prefix, zone string) {
	t.ranges = ranges
	for k := range t.outside {
		t.changed[k] = struct{}{}
	}
	if t.zone == zone {
		return
	}
	t.zone = zone
	for k, all := range t.slices {
		if slices.ContainsFunc(all, func(s *endpointSlice) bool { return s.hinted }) {
			t.changed[k] = struct{}{}
		}
	}
}

// flush brings the index up to date.
func (t *serviceTables) flush() {
	for k := range t.changed {
		s := t.services[k]
		if s == nil {
			t.index.DeleteService(k.namespace, k.name)
			continue
		}
		full := s.Service
		full.External = t.claimable(s.External)
		full.Ports = slices.Clone(s.Ports)
		for i := range full.Ports {
			full.Ports[i].Endpoints = t.endpoints(s, t.slices[k], full.Ports[i].Name)
		}
		t.index.SetService(&full)
	}
	clear(t.changed)
}

// maxExternal bounds the external addresses of one Service: each is an entry in a map of every node's kernel.
const maxExternal = 64

// claimable leaves out external addresses that are the cluster's own: anyone who may write a Service can claim any.
func (t *serviceTables) claimable(claimed []netip.Addr) []netip.Addr {
	var all []netip.Addr
	for _, a := range claimed[:min(len(claimed), maxExternal)] {
		inside := slices.ContainsFunc(t.ranges, func(p netip.Prefix) bool { return p.Contains(a) })
		if !inside && t.cluster[a] == 0 {
			all = append(all, a)
		}
	}
	return all
}
