package preflight

import "strings"

// Need is one permission of the agent, and what for.
type Need struct {
	Group, Resource string // Resource with its subresource: "pods/status"
	Verb            string
	// Own is for what is needed in the agent's own namespace alone, and Name for one object there.
	Own    bool
	Name   string
	Reason string
	// Optional is what an agent can do without.
	Optional bool
}

// String is the permission as RBAC's rules write it.
func (n Need) String() string {
	resource, sub, has := strings.Cut(n.Resource, "/")
	if n.Group != "" {
		resource += "." + n.Group
	}
	if has {
		resource += "/" + sub
	}
	if n.Name != "" {
		resource += " " + n.Name
	}
	return n.Verb + " " + resource
}

// Names of objects in the agent's own namespace.
const (
	// DefaultDaemonSet is the agent's.
	DefaultDaemonSet = "culvert-agent"
	statusLease      = "culvert-status"
)

// Needs returns all permissions of the agent's ServiceAccount: this is the list that its ClusterRole and Role are
// compared with. daemonSet is the name of its DaemonSet.
func Needs(daemonSet string) []Need {
	var all []Need
	add := func(n Need, verbs ...string) {
		for _, n.Verb = range verbs {
			all = append(all, n)
		}
	}
	add(Need{Resource: "pods", Reason: "which pods there are, whose they are, and which are enrolled"}, "list", "watch")
	add(Need{Resource: "services", Reason: "which addresses are Services"}, "list", "watch")
	add(Need{Group: "discovery.k8s.io", Resource: "endpointslices", Reason: "which pods are behind a Service"}, "list", "watch")
	add(Need{Resource: "namespaces", Reason: "labels by which a namespace asks to be enrolled"}, "list", "watch")
	add(Need{Resource: "nodes", Reason: "the ranges of the pods' addresses"}, "list", "watch")
	add(Need{Group: "networking.k8s.io", Resource: "servicecidrs", Reason: "the ranges of the Services' addresses", Optional: true}, "list", "watch")
	add(Need{Group: "security.istio.io", Resource: "peerauthentications", Reason: "the policies"}, "list", "watch")
	add(Need{Group: "networking.istio.io", Resource: "destinationrules", Reason: "the client's side of policies"}, "list", "watch")
	add(Need{Resource: "pods/status", Reason: "the annotation that tells peers that a pod is enrolled"}, "patch")
	add(Need{Resource: "events", Reason: "Events Enrolled, NotEnrolled, PolicyRejected", Optional: true}, "create", "patch")
	add(Need{Group: "security.istio.io", Resource: "peerauthentications/status", Reason: "the condition culvert.dev/Accepted", Optional: true}, "patch")
	add(Need{Group: "networking.istio.io", Resource: "destinationrules/status", Reason: "the condition culvert.dev/Accepted", Optional: true}, "patch")
	add(Need{Group: "apps", Resource: "daemonsets", Own: true, Name: daemonSet, Reason: "to tell an uninstall from a restart"}, "get", "list", "watch")
	add(Need{Group: "coordination.k8s.io", Resource: "leases", Own: true, Reason: "one agent writes the status of policies", Optional: true}, "create")
	add(Need{Group: "coordination.k8s.io", Resource: "leases", Own: true, Name: statusLease, Reason: "one agent writes the status of policies", Optional: true}, "get", "update")
	return all
}
