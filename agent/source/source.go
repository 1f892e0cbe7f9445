// Package source describes the part of the cluster that an agent needs, whatever it was read from.
//
// Kubernetes types end here: the packages source/file (a folder of manifests) and, on a cluster,
// source/kube translate them into a Snapshot, and everything above works on Snapshots alone.
package source

import (
	"context"
	"net/netip"
	"time"

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

// Redirection is what a pod's annotation tells of the mesh that covers it.
type Redirection uint8

// RedirectionUnknown is for sources that cannot tell; labels decide in its place.
const (
	RedirectionUnknown Redirection = iota
	RedirectionAbsent
	RedirectionEnabled
)

// RedirectionAnnotation on a Pod, with RedirectionValue, says that its connections are redirected into a tunnel that
// takes HBONE on port 15008. The data planes of the mesh read it of each other's pods.
const (
	RedirectionAnnotation = "ambient.istio.io/redirection"
	RedirectionValue      = "enabled"
)

// Pod is a pod of any node.
type Pod struct {
	Namespace, Name string
	UID             string    // empty when the source has none
	RuntimeUID      string    // as the container runtime knows it, where that is another: of static pods
	Created         time.Time // the zero time when the source has none
	Redirection     Redirection
	Labels          map[string]string
	Annotations     map[string]string
	Owner           string // what made it, by the name that people know: a Deployment's; empty when nothing did
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

// SandboxUID is the UID by which the container runtime knows the pod.
func (p *Pod) SandboxUID() string {
	if p.RuntimeUID != "" {
		return p.RuntimeUID
	}
	return p.UID
}

// Service is a Kubernetes Service with the endpoints that are ready.
type Service struct {
	Namespace, Name string
	Selector        map[string]string
	Addresses       []netip.Addr // cluster addresses; empty for a headless one
	// External are addresses outside the cluster's ranges that lead to it as well: externalIPs and load balancers. Their
	// other ports are not the Service's.
	External []netip.Addr
	Ports    []ServicePort
}

// Ref is the Service as "namespace/name".
func (s *Service) Ref() string { return s.Namespace + "/" + s.Name }

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

// Contents is everything that a source of few objects read at once; Snapshot is its indexed form.
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
