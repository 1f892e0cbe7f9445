package source

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/culvert-mesh/culvert/policy"
)

// name is the name of an object in a namespace.
type name struct{ namespace, name string }

// Index is the cluster as a source learns it, object by object. It belongs to one goroutine; Snapshot gives views
// of it to others. What is given to it must not be changed afterwards.
type Index struct {
	node string

	pods     map[name]*Pod
	services map[name]*Service
	// rivals are pods that claim an address which a newer pod has.
	rivals map[netip.Addr][]*Pod

	namespaces *table[string, *Namespace]
	byAddress  *table[netip.Addr, *Pod]
	virtual    *table[netip.Addr, []*Service]         // by cluster or external address
	headless   *table[netip.AddrPort, []headlessPort] // by endpoint
	local      *table[string, *Pod]                   // "namespace/name"
	policies   *table[string, []policy.PeerAuthentication]
	rules      *table[string, []policy.DestinationRule]

	ranges     []netip.Prefix
	problems   []Problem
	unreadable []string
	changes    Changes
}

// headlessPort is the port of a headless Service that leads to an endpoint.
type headlessPort struct {
	service *Service
	port    uint16
}

// NewIndex returns an empty index. Pods of that node are local; a pod without a node is nobody's.
func NewIndex(node string) *Index {
	return &Index{
		node:       node,
		pods:       map[name]*Pod{},
		services:   map[name]*Service{},
		rivals:     map[netip.Addr][]*Pod{},
		namespaces: newTable[string, *Namespace](),
		byAddress:  newTable[netip.Addr, *Pod](),
		virtual:    newTable[netip.Addr, []*Service](),
		headless:   newTable[netip.AddrPort, []headlessPort](),
		local:      newTable[string, *Pod](),
		policies:   newTable[string, []policy.PeerAuthentication](),
		rules:      newTable[string, []policy.DestinationRule](),
		changes:    Changes{All: true},
	}
}

// Snapshot is what the index holds now, with what changed since the Snapshot before. It is nil when nothing did.
func (x *Index) Snapshot() *Snapshot {
	if x.changes.none() {
		x.changes = Changes{}
		return nil
	}
	s := &Snapshot{
		Changes: x.changes, Ranges: x.ranges, Problems: x.problems, UnreadablePolicies: x.unreadable,
		pods:       len(x.pods),
		namespaces: x.namespaces.frozen(),
		byAddress:  x.byAddress.frozen(),
		virtual:    x.virtual.frozen(),
		headless:   x.headless.frozen(),
		local:      x.local.frozen(),
		policies:   x.policies.frozen(),
		rules:      x.rules.frozen(),
	}
	x.changes = Changes{}
	return s
}

// Arrived says when something came that is being set.
func (x *Index) Arrived(at time.Time) { x.changes.arrived(at) }

// SetNamespace adds a namespace, or replaces it.
func (x *Index) SetNamespace(n *Namespace) {
	if was, ok := x.namespaces.get(n.Name); ok && maps.Equal(was.Labels, n.Labels) && maps.Equal(was.Annotations, n.Annotations) {
		return
	}
	x.namespaces.set(n.Name, n)
	x.changes.namespace(n.Name)
}

// DeleteNamespace forgets a namespace, if it is known.
func (x *Index) DeleteNamespace(name string) {
	if _, ok := x.namespaces.get(name); ok {
		x.namespaces.delete(name)
		x.changes.namespace(name)
	}
}

// SetPod adds a pod, or replaces the one of its name.
func (x *Index) SetPod(p *Pod) {
	key := name{p.Namespace, p.Name}
	was := x.pods[key]
	if was != nil && was.equal(p) {
		return
	}
	if was != nil {
		x.forget(was)
	}
	x.pods[key] = p
	for _, a := range p.claims() {
		x.claim(a, p)
	}
	if x.isLocal(p) {
		x.local.set(p.Ref(), p)
		x.changes.Local = true
	}
}

// DeletePod forgets a pod, if it is known.
func (x *Index) DeletePod(namespace, podName string) {
	key := name{namespace, podName}
	if p := x.pods[key]; p != nil {
		x.forget(p)
		delete(x.pods, key)
	}
}

func (x *Index) forget(p *Pod) {
	for _, a := range p.claims() {
		x.giveUp(a, p)
	}
	if x.isLocal(p) {
		x.local.delete(p.Ref())
		x.changes.Local = true
	}
}

func (x *Index) isLocal(p *Pod) bool { return p.Node != "" && p.Node == x.node }

// claim gives the address to the pod. Two pods may claim one for a while, when an address was given out again
// before the API server heard of the end of its last owner: the one made later has it.
func (x *Index) claim(a netip.Addr, p *Pod) {
	owner, taken := x.byAddress.get(a)
	if taken && newer(owner, p) {
		x.rivals[a] = append(x.rivals[a], p)
		return
	}
	if taken {
		x.rivals[a] = append(x.rivals[a], owner)
	}
	x.byAddress.set(a, p)
	x.changes.address(a)
}

func (x *Index) giveUp(a netip.Addr, p *Pod) {
	rivals := slices.DeleteFunc(x.rivals[a], func(r *Pod) bool { return r == p })
	if owner, _ := x.byAddress.get(a); owner == p {
		x.byAddress.delete(a)
		if i := newest(rivals); i >= 0 {
			x.byAddress.set(a, rivals[i])
			rivals = slices.Delete(rivals, i, i+1)
		}
		x.changes.address(a)
	}
	if len(rivals) == 0 {
		delete(x.rivals, a)
		return
	}
	x.rivals[a] = rivals
}

// newer is a total order.
func newer(a, b *Pod) bool {
	return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.UID, b.UID), cmp.Compare(a.Ref(), b.Ref())) > 0
}

func newest(pods []*Pod) int {
	best := -1
	for i := range pods {
		if best < 0 || newer(pods[i], pods[best]) {
			best = i
		}
	}
	return best
}

// SetService adds a Service, or replaces the one of its name.
func (x *Index) SetService(s *Service) {
	key := name{s.Namespace, s.Name}
	was := x.services[key]
	if was != nil && was.equal(s) {
		return
	}
	if was != nil {
		x.withdraw(was)
	}
	x.services[key] = s
	for a := range s.addresses() {
		all, _ := x.virtual.get(a)
		x.virtual.set(a, insertSorted(all, s, func(a, b *Service) int { return cmp.Compare(a.Ref(), b.Ref()) }))
		x.changes.address(a)
	}
	for e, port := range s.headlessEndpoints() {
		all, _ := x.headless.get(e)
		x.headless.set(e, insertSorted(all, headlessPort{s, port}, compareHeadless))
		x.changes.address(e.Addr())
	}
}

// DeleteService forgets a Service, if it is known.
func (x *Index) DeleteService(namespace, serviceName string) {
	key := name{namespace, serviceName}
	if s := x.services[key]; s != nil {
		x.withdraw(s)
		delete(x.services, key)
	}
}

func (x *Index) withdraw(s *Service) {
	for a := range s.addresses() {
		all, _ := x.virtual.get(a)
		setOrDelete(x.virtual, a, without(all, func(o *Service) bool { return o == s }))
		x.changes.address(a)
	}
	for e := range s.headlessEndpoints() {
		all, _ := x.headless.get(e)
		setOrDelete(x.headless, e, without(all, func(h headlessPort) bool { return h.service == s }))
		x.changes.address(e.Addr())
	}
}

func compareHeadless(a, b headlessPort) int {
	return cmp.Or(cmp.Compare(a.service.Ref(), b.service.Ref()), cmp.Compare(a.port, b.port))
}

// insertSorted makes a new slice: snapshots hold the old one.
func insertSorted[T any](all []T, v T, compare func(a, b T) int) []T {
	all = append(slices.Clone(all), v)
	slices.SortFunc(all, compare)
	return all
}

func without[T any](all []T, drop func(T) bool) []T {
	return slices.DeleteFunc(slices.Clone(all), drop)
}

func setOrDelete[K comparable, T any](t *table[K, []T], k K, all []T) {
	if len(all) == 0 {
		t.delete(k)
		return
	}
	t.set(k, all)
}

// SetPolicies replaces all policies of a namespace.
func (x *Index) SetPolicies(namespace string, all []policy.PeerAuthentication) {
	setOrDelete(x.policies, namespace, all)
	x.changes.policies(namespace)
}

// SetRules replaces all DestinationRules of a namespace.
func (x *Index) SetRules(namespace string, all []policy.DestinationRule) {
	setOrDelete(x.rules, namespace, all)
	x.changes.Rules = true
}

// SetRanges replaces the ranges of pod and Service addresses.
func (x *Index) SetRanges(ranges []netip.Prefix) {
	if !slices.Equal(x.ranges, ranges) {
		x.ranges = ranges
		x.changes.Ranges = true
	}
}

// SetProblems replaces the objects that could not be used, and the namespaces whose policies are not all known.
func (x *Index) SetProblems(problems []Problem, unreadablePolicies []string) {
	x.problems, x.unreadable = problems, unreadablePolicies
	x.changes.Problems = true
}
