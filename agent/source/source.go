// Package source describes the part of the cluster that an agent needs, whatever it was read from.
//
// Kubernetes types end here: the packages source/file (a folder of manifests) and, on a cluster,
// source/kube translate them into a Snapshot, and everything above works on Snapshots alone.
package source

import (
	"context"
	"net/netip"

	"github.com/culvert-mesh/culvert/policy"
)

// NetnsAnnotation on a Pod names the path of its network namespace where no container runtime can be asked.
const NetnsAnnotation = "culvert.dev/netns"

// Source delivers what it knows of the cluster, and again whenever that changed.
type Source interface {
	// Run calls publish with the first Snapshot once everything was read, and with a new one after
	// each change, always from one goroutine, until ctx ends. A Snapshot is never changed afterwards.
	Run(ctx context.Context, publish func(*Snapshot)) error
}

// Namespace is a Kubernetes namespace.
type Namespace struct {
	Name        string
	Labels      map[string]string
	Annotations map[string]string
}

// Pod is a pod of any node.
type Pod struct {
	Namespace, Name string
	Labels          map[string]string
	Annotations     map[string]string
	ServiceAccount  string // "default" when the manifest names none
	Node            string // spec.nodeName
	Addresses       []netip.Addr
	HostNetwork     bool
	Containers      []string          // init containers included: a sidecar may be one
	Ports           map[string]uint16 // named TCP container ports
	ContainerPorts  []uint16          // all TCP ports that the containers declare
	NetnsPath       string            // from NetnsAnnotation; empty when unknown
}

// Ref is the pod as "namespace/name".
func (p *Pod) Ref() string { return p.Namespace + "/" + p.Name }

// Service is a Kubernetes Service with the endpoints that are ready.
type Service struct {
	Namespace, Name string
	Selector        map[string]string
	Addresses       []netip.Addr // cluster addresses; empty for a headless one
	Ports           []ServicePort
}

// ServicePort is one TCP port of a Service and where it leads.
type ServicePort struct {
	Name      string
	Port      uint16
	Target    string           // targetPort: a number, or the name of a container port
	Endpoints []netip.AddrPort // pod address and container port
}

// Problem is an object, or a piece of a file, that could not be used.
type Problem struct {
	Object string // "PeerAuthentication default/strict", or the file and document
	Err    error
}

// Contents is everything that a source read; Snapshot is its indexed form.
type Contents struct {
	Namespaces []Namespace
	Pods       []Pod
	Services   []Service
	Policies   []policy.PeerAuthentication
	Rules      []policy.DestinationRule
	Problems   []Problem
	// UnreadablePolicies names the namespaces in which a policy exists that could not be read and of
	// which no earlier good version is known; "" stands for: it could be any namespace.
	// In those, nothing may be loosened, and nothing new may start open.
	UnreadablePolicies []string
}
