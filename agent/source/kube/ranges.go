package kube

import (
	"net/netip"
	"slices"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// node is what is kept of a Node.
type node struct {
	ranges []netip.Prefix
	zone   string
}

func convertNode(o runtime.Object) any {
	k, ok := o.(*core.Node)
	if !ok {
		return nil
	}
	texts := k.Spec.PodCIDRs
	if len(texts) == 0 {
		texts = []string{k.Spec.PodCIDR}
	}
	return node{ranges: parseRanges(texts), zone: share(k.Labels[core.LabelTopologyZone])}
}

func convertServiceCIDR(o runtime.Object) any {
	k, ok := o.(*networking.ServiceCIDR)
	if !ok {
		return nil
	}
	return parseRanges(k.Spec.CIDRs)
}

// parseRanges leaves out what is no range, and a range of everything, which nobody can have meant.
func parseRanges(texts []string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		if p, err := netip.ParsePrefix(text); err == nil && p.Bits() > 0 {
			all = append(all, p.Masked())
		}
	}
	return all
}

// rangeTables collects the ranges that Nodes and ServiceCIDRs have, and this node's zone.
type rangeTables struct {
	self     string
	zone     string
	nodes    map[objectKey]node
	services map[objectKey][]netip.Prefix
	changed  bool
}

func newRangeTables(self string) *rangeTables {
	return &rangeTables{self: self, nodes: map[objectKey]node{}, services: map[objectKey][]netip.Prefix{}}
}

type nodeTable struct{ *rangeTables }

func (t nodeTable) set(k objectKey, v any) {
	n := v.(node)
	was, known := t.nodes[k]
	if known && was.zone == n.zone && slices.Equal(was.ranges, n.ranges) {
		return // a Node's status is written every few minutes
	}
	t.nodes[k] = n
	t.zone = t.nodes[objectKey{name: t.self}].zone
	t.changed = true
}

func (t nodeTable) remove(k objectKey) {
	delete(t.nodes, k)
	t.zone = t.nodes[objectKey{name: t.self}].zone
	t.changed = true
}

type serviceRangeTable struct{ *rangeTables }

func (t serviceRangeTable) set(k objectKey, v any) {
	t.services[k] = v.([]netip.Prefix)
	t.changed = true
}

func (t serviceRangeTable) remove(k objectKey) {
	delete(t.services, k)
	t.changed = true
}

// all returns the ranges, joined as far as they can be: a thousand nodes mostly share one range.
func (t *rangeTables) all() []netip.Prefix {
	var all []netip.Prefix
	for _, n := range t.nodes {
		all = append(all, n.ranges...)
	}
	for _, s := range t.services {
		all = append(all, s...)
	}
	return joinRanges(all)
}

// joinRanges sorts ranges, leaves out those inside others, and makes one of two halves.
func joinRanges(all []netip.Prefix) []netip.Prefix {
	slices.SortFunc(all, netip.Prefix.Compare)
	var out []netip.Prefix
	for _, p := range all {
		if n := len(out); n > 0 && out[n-1].Overlaps(p) {
			continue // sorted, so it is inside the one before
		}
		out = append(out, p)
		for len(out) > 1 {
			low, high := out[len(out)-2], out[len(out)-1]
			if low.Bits() != high.Bits() || low.Bits() <= 1 {
				break
			}
			joined := netip.PrefixFrom(low.Addr(), low.Bits()-1).Masked()
			if joined.Addr() != low.Addr() || !joined.Contains(high.Addr()) {
				break
			}
			out = append(out[:len(out)-2], joined)
		}
	}
	return out
}
