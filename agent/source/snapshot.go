package source

import (
	"iter"
	"net/netip"
	"slices"

	"github.com/culvert-mesh/culvert/policy"
)

// Snapshot is an immutable, indexed view of the cluster. Its methods may be called concurrently.
type Snapshot struct {
	// Changes tells what differs from the Snapshot before; whoever skips one must take it for All.
	Changes  Changes
	Ranges   []netip.Prefix // pods and Services: those that the source could learn
	Problems []Problem
	// UnreadablePolicies is as in Contents.
	UnreadablePolicies []string
	// Incomplete says that a pod or a namespace may be missing, because something could not be read.
	Incomplete bool

	pods       int
	namespaces *table[string, *Namespace]
	byAddress  *table[netip.Addr, *Pod]
	virtual    *table[netip.Addr, []*Service]
	headless   *table[netip.AddrPort, []headlessPort]
	local      *table[string, *Pod]
	policies   *table[string, []policy.PeerAuthentication]
	rules      *table[string, []policy.DestinationRule]
}

// NewSnapshot indexes c, which the caller must not change any more. A pod that names no node counts as one of this
// node: a folder of manifests need not tell.
func NewSnapshot(node string, c Contents) *Snapshot {
	x := NewIndex(node)
	for i := range c.Namespaces {
		x.SetNamespace(&c.Namespaces[i])
	}
	for i := range c.Pods {
		p := c.Pods[i]
		if p.Node == "" {
			p.Node = node
		}
		x.SetPod(&p)
	}
	for i := range c.Services {
		x.SetService(&c.Services[i])
	}
	for namespace, all := range byNamespace(c.Policies, func(p *policy.PeerAuthentication) string { return p.Namespace }) {
		x.SetPolicies(namespace, all)
	}
	for namespace, all := range byNamespace(c.Rules, func(r *policy.DestinationRule) string { return r.Namespace }) {
		x.SetRules(namespace, all)
	}
	x.SetProblems(c.Problems, c.UnreadablePolicies)
	s := x.Snapshot()
	s.Incomplete = len(c.Problems) > 0
	return s
}

func byNamespace[T any](all []T, namespace func(*T) string) map[string][]T {
	sorted := map[string][]T{}
	for i := range all {
		n := namespace(&all[i])
		sorted[n] = append(sorted[n], all[i])
	}
	return sorted
}

// Since is s with what an earlier Snapshot, which was skipped, changed before it.
func (s *Snapshot) Since(skipped *Snapshot) *Snapshot {
	merged := *s
	merged.Changes.Merge(&skipped.Changes)
	return &merged
}

// Empty reports whether nothing at all is known of the cluster.
func (s *Snapshot) Empty() bool { return s.pods == 0 && s.namespaces.size == 0 }

// Pods is how many pods there are on all nodes.
func (s *Snapshot) Pods() int { return s.pods }

// Namespace returns the namespace of that name. One that was never seen has no labels.
func (s *Snapshot) Namespace(name string) *Namespace {
	if n, ok := s.namespaces.get(name); ok {
		return n
	}
	return &Namespace{Name: name}
}

// HasNamespace reports whether the namespace was seen.
func (s *Snapshot) HasNamespace(name string) bool {
	_, ok := s.namespaces.get(name)
	return ok
}

// Local are the pods of this node, by "namespace/name".
func (s *Snapshot) Local() iter.Seq2[string, *Pod] { return s.local.all() }

// LocalPod returns the pod of this node of that "namespace/name", or nil.
func (s *Snapshot) LocalPod(ref string) *Pod {
	p, _ := s.local.get(ref)
	return p
}

// PodByAddress returns the pod that owns the address, or nil. Pods with hostNetwork share the node's
// addresses and are not found.
func (s *Snapshot) PodByAddress(a netip.Addr) *Pod {
	p, _ := s.byAddress.get(a.Unmap())
	return p
}

// ServiceByAddress returns the Service that the address and port lead to; one without that port when no Service at
// that address has it; nil when the address is no Service's.
func (s *Snapshot) ServiceByAddress(a netip.AddrPort) *Service {
	all, _ := s.virtual.get(a.Addr().Unmap())
	for _, service := range all {
		if slices.ContainsFunc(service.Ports, func(p ServicePort) bool { return p.Port == a.Port() }) {
			return service
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all[0]
}

// HeadlessService returns the Service without an address of its own for which clients use this endpoint of a pod,
// and the Service's port. Of several, the first by name counts.
func (s *Snapshot) HeadlessService(namespace string, endpoint netip.AddrPort) (*Service, uint16) {
	all, _ := s.headless.get(netip.AddrPortFrom(endpoint.Addr().Unmap(), endpoint.Port()))
	for _, h := range all {
		if h.service.Namespace == namespace {
			return h.service, h.port
		}
	}
	return nil, 0
}

// Addresses are all that lead to a pod or a Service.
func (s *Snapshot) Addresses() iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for a := range s.byAddress.all() {
			if !yield(a) {
				return
			}
		}
		for a := range s.virtual.all() {
			if !yield(a) {
				return
			}
		}
	}
}

// Known reports whether an address leads to a pod or a Service.
func (s *Snapshot) Known(a netip.Addr) bool {
	_, pod := s.byAddress.get(a.Unmap())
	_, service := s.virtual.get(a.Unmap())
	return pod || service
}

// Policies are the PeerAuthentications of a namespace.
func (s *Snapshot) Policies(namespace string) []policy.PeerAuthentication {
	all, _ := s.policies.get(namespace)
	return all
}

// AllPolicies are the PeerAuthentications of all namespaces, in no order.
func (s *Snapshot) AllPolicies() []policy.PeerAuthentication { return collect(s.policies) }

// AllRules are the DestinationRules of all namespaces, in no order.
func (s *Snapshot) AllRules() []policy.DestinationRule { return collect(s.rules) }

func collect[T any](t *table[string, []T]) []T {
	var all []T
	for _, some := range t.all() {
		all = append(all, some...)
	}
	return all
}

// PolicyUnreadable reports whether a policy that may apply to the namespace could not be read.
// root is the mesh's root namespace.
func (s *Snapshot) PolicyUnreadable(namespace, root string) bool {
	return slices.ContainsFunc(s.UnreadablePolicies, func(n string) bool {
		return n == "" || n == namespace || n == root
	})
}
