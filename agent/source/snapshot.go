package source

import (
	"net/netip"
	"slices"
)

// Snapshot is an immutable, indexed view of Contents. Its methods may be called concurrently.
type Snapshot struct {
	Contents
	namespaces map[string]*Namespace
	pods       map[netip.Addr]*Pod
	services   map[netip.Addr]*Service
}

// NewSnapshot indexes c, which the caller must not change any more. hostNetwork pods share the node's
// addresses and are therefore not found by address.
func NewSnapshot(c Contents) *Snapshot {
	s := &Snapshot{
		Contents:   c,
		namespaces: make(map[string]*Namespace, len(c.Namespaces)),
		pods:       make(map[netip.Addr]*Pod, 2*len(c.Pods)),
		services:   make(map[netip.Addr]*Service, 2*len(c.Services)),
	}
	for i := range c.Namespaces {
		s.namespaces[c.Namespaces[i].Name] = &c.Namespaces[i]
	}
	for i := range c.Pods {
		if c.Pods[i].HostNetwork {
			continue
		}
		for _, a := range c.Pods[i].Addresses {
			s.pods[a.Unmap()] = &c.Pods[i]
		}
	}
	for i := range c.Services {
		for _, a := range c.Services[i].Addresses {
			s.services[a.Unmap()] = &c.Services[i]
		}
	}
	return s
}

// Namespace returns the namespace of that name. One that was never seen has no labels.
func (s *Snapshot) Namespace(name string) *Namespace {
	if n := s.namespaces[name]; n != nil {
		return n
	}
	return &Namespace{Name: name}
}

// PodByAddress returns the pod that owns the address, or nil.
func (s *Snapshot) PodByAddress(a netip.Addr) *Pod { return s.pods[a.Unmap()] }

// ServiceByAddress returns the Service whose cluster address it is, or nil.
func (s *Snapshot) ServiceByAddress(a netip.Addr) *Service { return s.services[a.Unmap()] }

// PolicyUnreadable reports whether a policy that may apply to the namespace could not be read.
// root is the mesh's root namespace.
func (s *Snapshot) PolicyUnreadable(namespace, root string) bool {
	return slices.ContainsFunc(s.UnreadablePolicies, func(n string) bool {
		return n == "" || n == namespace || n == root
	})
}
