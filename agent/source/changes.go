package source

import (
	"maps"
	"net/netip"
	"time"
)

// Changes is what differs between a Snapshot and the one before.
type Changes struct {
	All        bool                    // anything may: the first one, or one of a source that does not know
	Addresses  map[netip.Addr]struct{} // what pods or Services these lead to
	Namespaces map[string]struct{}     // their labels or annotations
	Policies   map[string]struct{}     // the namespaces whose PeerAuthentications differ
	Local      bool                    // a pod of this node
	Rules      bool
	Ranges     bool
	Problems   bool
	// Arrived is when the first of them came to the source; zero when it does not know.
	Arrived time.Time
}

func (c *Changes) none() bool {
	return !c.All && !c.Local && !c.Rules && !c.Ranges && !c.Problems &&
		len(c.Addresses) == 0 && len(c.Namespaces) == 0 && len(c.Policies) == 0
}

// Merge adds what an earlier Snapshot changed, for those who skip it.
func (c *Changes) Merge(earlier *Changes) {
	c.All = c.All || earlier.All
	c.Local = c.Local || earlier.Local
	c.Rules = c.Rules || earlier.Rules
	c.Ranges = c.Ranges || earlier.Ranges
	c.Problems = c.Problems || earlier.Problems
	c.arrived(earlier.Arrived)
	c.Addresses = union(c.Addresses, earlier.Addresses)
	c.Namespaces = union(c.Namespaces, earlier.Namespaces)
	c.Policies = union(c.Policies, earlier.Policies)
}

// arrived keeps the earlier time.
func (c *Changes) arrived(t time.Time) {
	if c.Arrived.IsZero() || !t.IsZero() && t.Before(c.Arrived) {
		c.Arrived = t
	}
}

// union is a new set: those of a Snapshot are read by others.
func union[K comparable](a, b map[K]struct{}) map[K]struct{} {
	if len(b) == 0 {
		return a
	}
	all := make(map[K]struct{}, len(a)+len(b))
	maps.Copy(all, a)
	maps.Copy(all, b)
	return all
}

func (c *Changes) address(a netip.Addr) { add(&c.Addresses, a) }

func (c *Changes) namespace(name string) { add(&c.Namespaces, name) }

func (c *Changes) policies(namespace string) { add(&c.Policies, namespace) }

func add[K comparable](set *map[K]struct{}, k K) {
	if *set == nil {
		*set = map[K]struct{}{}
	}
	(*set)[k] = struct{}{}
}

// Address reports whether what is at the address may differ.
func (c *Changes) Address(a netip.Addr) bool {
	_, ok := c.Addresses[a.Unmap()]
	return ok || c.All
}

// Namespace reports whether the labels, annotations or policies of a namespace may differ.
func (c *Changes) Namespace(name string) bool {
	if _, ok := c.Namespaces[name]; ok {
		return true
	}
	_, ok := c.Policies[name]
	return ok || c.All
}
