package demo

import (
	"fmt"
)

// What follows lets the walkthrough be played elsewhere: in a real cluster, by its own means.

// Outcomes of a Request, and how it is carried when it succeeds.
const (
	Succeeds = string(succeeds)
	Refused  = string(refused)
	Rejected = string(rejected)

	ByMTLS      = byMTLS
	BySameNode  = bySameNode
	ByPlaintext = byPlaintext
)

// RequestSpec is one request of a step and what has to come of it.
type RequestSpec struct {
	From, To string // namespace/name
	Port     uint16
	Service  bool   // to the Service's address instead of the pod's
	Want     string // Succeeds, Refused, Rejected
	Carried  string // ByMTLS means BySameNode between pods of one node
	Decided  string // the policy that has to be named; empty: any
}

// StepSpec is a state of the configuration and what has to hold in it.
type StepSpec struct {
	Name     string
	Policies []string // names for Manifest
	Requests []RequestSpec
}

// PodSpec is a pod of the walkthrough. Its Service and its service account are named like it.
type PodSpec struct {
	Namespace, Name string
	Node            string // a or b
	OptedOut        bool
}

// Walkthrough returns the steps that are made of requests, in their order.
func Walkthrough() []StepSpec {
	var specs []StepSpec
	for _, s := range walkthrough() {
		if s.play != nil {
			continue
		}
		spec := StepSpec{Name: s.name, Policies: s.policies}
		for _, c := range s.checks {
			spec.Requests = append(spec.Requests, RequestSpec{
				From: c.from, To: c.to, Port: c.port, Service: c.service,
				Want: string(c.want), Carried: c.carried, Decided: c.decided,
			})
		}
		specs = append(specs, spec)
	}
	return specs
}

// Pods returns the pods of the walkthrough.
func Pods() []PodSpec {
	var pods []PodSpec
	for _, p := range podSpecs() {
		pods = append(pods, PodSpec{Namespace: p.namespace, Name: p.name, Node: p.node, OptedOut: p.optedOut})
	}
	return pods
}

// EnrolledNamespaces returns the namespaces of the walkthrough and whether they ask to be in the mesh.
func EnrolledNamespaces() map[string]bool {
	return map[string]bool{"default": true, "test": true, "web": true, "audit": false, "istio-system": false}
}

// Manifest returns the manifest of a policy of the walkthrough.
func Manifest(name string) ([]byte, error) {
	text, err := manifests.ReadFile("manifests/" + name + ".yaml")
	if err != nil {
		return nil, fmt.Errorf("demo: manifest: %w", err)
	}
	return text, nil
}
