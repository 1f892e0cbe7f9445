package main

import (
	"fmt"
	"net/netip"
	"sync"

	"github.com/culvert-mesh/culvert/e2e/lab"
)

const (
	maxNodes       = 8000 // ranges of 256 addresses below 10.128.0.0/9, with some to spare
	maxPodsPerNode = 250
	appsPerSpace   = 5
	rootNamespace  = "istio-system"
	placeLabel     = "place"
)

// slot is where a pod lives: one of a node's addresses. Pods come and go in it, one at a time.
type slot struct {
	number    int
	namespace string
	app       string
	node      string
	addresses []netip.Addr
	local     *lab.Pod // of the measured node

	mu         sync.Mutex // held while the pod is being written
	generation int
	version    int // in a label
	uid        string
}

func (s *slot) name() string {
	return fmt.Sprintf("%s-6d4cf56db6-%05d-%d", s.app, s.number, s.generation)
}

// place is the value of a label that no other pod has.
func (s *slot) place() string { return fmt.Sprintf("slot-%d", s.number) }

// plan says what is in the cluster.
type plan struct {
	options options
	slots   []*slot
}

// newPlan spreads pods over nodes and namespaces. The first are those of the measured node, each in a namespace of
// its own as long as there are enough.
func newPlan(o options) *plan {
	p := &plan{options: o, slots: make([]*slot, o.pods)}
	for i := range p.slots {
		s := &slot{number: i, namespace: namespaceName(i % o.namespaces)}
		if i < o.localPods {
			s.node, s.app = localNode, "local"
		} else {
			remote := i - o.localPods
			node, place := 1+remote%(o.nodes-1), 2+remote/(o.nodes-1)
			s.node = nodeName(node)
			s.app = appName(i / o.namespaces % appsPerSpace)
			range4, range6 := nodeRanges(node)
			s.addresses = []netip.Addr{offset(range4.Addr(), place), offset(range6.Addr(), place)}
		}
		p.slots[i] = s
	}
	return p
}

func namespaceName(i int) string { return fmt.Sprintf("team-%04d", i) }

func appName(i int) string { return fmt.Sprintf("shop-%d", i) }

func nodeName(i int) string {
	return fmt.Sprintf("ip-10-64-%d-%d.eu-central-1.compute.internal", i/256, i%256)
}

// nodeRanges are where the pods of a node other than the measured one have their addresses.
func nodeRanges(i int) (v4, v6 netip.Prefix) {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 128 + byte(i>>8), byte(i), 0}), 24),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x80, 6: byte(i >> 8), 7: byte(i)}), 64)
}

func offset(a netip.Addr, by int) netip.Addr {
	b := a.AsSlice()
	b[len(b)-1] += byte(by)
	sum, _ := netip.AddrFromSlice(b)
	return sum
}
