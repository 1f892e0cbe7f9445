package main

import (
	"fmt"

	security "istio.io/api/security/v1beta1"
	selector "istio.io/api/type/v1beta1"
	istio "istio.io/client-go/pkg/apis/security/v1"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/culvert-mesh/culvert/policy"
)

func namespaceObject(name string) *core.Namespace {
	return &core.Namespace{ObjectMeta: meta.ObjectMeta{
		Name:   name,
		Labels: map[string]string{"istio.io/dataplane-mode": "ambient", "owner": name},
	}}
}

func nodeObject(i int, ranges ...string) *core.Node {
	name := nodeName(i)
	if i == 0 {
		name = localNode
	}
	return &core.Node{
		ObjectMeta: meta.ObjectMeta{Name: name, Labels: map[string]string{
			"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": fmt.Sprintf("zone-%d", i%3),
		}},
		Spec: core.NodeSpec{PodCIDR: ranges[0], PodCIDRs: ranges},
	}
}

// space is the namespace of a Service or a policy.
func (p *plan) space(number int) int { return number % p.options.namespaces }

// serviceObject is the i-th Service. It is for one of the apps of its namespace.
func (p *plan) serviceObject(i int) *core.Service {
	app := appName(i / p.options.namespaces % appsPerSpace)
	return &core.Service{
		ObjectMeta: meta.ObjectMeta{Namespace: namespaceName(p.space(i)), Name: fmt.Sprintf("service-%d", i), Labels: map[string]string{"app": app}},
		Spec: core.ServiceSpec{
			Selector: map[string]string{"app": app},
			Ports: []core.ServicePort{
				{Name: "http", Port: 80, TargetPort: intstr.FromString("http")},
				{Name: "metrics", Port: 9090, TargetPort: intstr.FromString("metrics")},
			},
		},
	}
}

// endpoints is how many endpoints a slice has.
func (p *plan) endpoints() int { return max(1, min(p.options.pods/p.options.services, 100)) }

// sliceObject leads the i-th Service to pods of its namespace. unready is one that is not ready; -1: none.
func (p *plan) sliceObject(i, unready int) *discovery.EndpointSlice {
	yes, no := true, false
	http, metrics, port, other := "http", "metrics", int32(8080), int32(9090)
	o := &discovery.EndpointSlice{
		ObjectMeta: meta.ObjectMeta{
			Namespace: namespaceName(p.space(i)), Name: fmt.Sprintf("service-%d-abcde", i),
			Labels: map[string]string{
				discovery.LabelServiceName: fmt.Sprintf("service-%d", i), discovery.LabelManagedBy: "endpointslice-controller.k8s.io",
			},
		},
		AddressType: discovery.AddressTypeIPv4,
		Ports:       []discovery.EndpointPort{{Name: &http, Port: &port}, {Name: &metrics, Port: &other}},
	}
	for e := range p.endpoints() {
		s := p.slots[(p.space(i)+e*p.options.namespaces)%len(p.slots)]
		ready := &yes
		if e == unready {
			ready = &no
		}
		zone := fmt.Sprintf("zone-%d", e%3)
		o.Endpoints = append(o.Endpoints, discovery.Endpoint{
			Addresses: []string{s.addresses[0].String()}, NodeName: &s.node, Zone: &zone,
			Conditions: discovery.EndpointConditions{Ready: ready, Serving: ready, Terminating: &no},
			TargetRef:  &core.ObjectReference{Kind: "Pod", Namespace: s.namespace, Name: s.name()},
		})
	}
	return o
}

// policyObject is the i-th PeerAuthentication: first one for the mesh, then one for each local pod, then those of
// the namespaces. None of the last kind selects a local pod.
func (p *plan) policyObject(i int, mode policy.Mode) *istio.PeerAuthentication {
	switch {
	case i == 0:
		return peerAuthentication(rootNamespace, "default", nil, policy.Permissive)
	case i <= p.options.localPods:
		return p.slots[i-1].ownPolicy(mode)
	}
	i -= 1 + p.options.localPods
	space, rank := namespaceName(p.space(i)), i/p.options.namespaces
	name := fmt.Sprintf("policy-%d", rank)
	switch {
	case rank == 0:
		return peerAuthentication(space, name, nil, policy.Permissive)
	case rank <= appsPerSpace:
		return peerAuthentication(space, name, map[string]string{"app": appName(rank - 1)}, mode)
	default:
		o := peerAuthentication(space, name, map[string]string{"app": appName(rank % appsPerSpace), "version": fmt.Sprintf("v%d", rank)}, mode)
		o.Spec.PortLevelMtls = map[uint32]*security.PeerAuthentication_MutualTLS{9090: {Mode: security.PeerAuthentication_MutualTLS_PERMISSIVE}}
		return o
	}
}

// ownPolicy selects the slot's pod alone.
func (s *slot) ownPolicy(mode policy.Mode) *istio.PeerAuthentication {
	return peerAuthentication(s.namespace, fmt.Sprintf("own-%d", s.number), map[string]string{placeLabel: s.place()}, mode)
}

func peerAuthentication(namespace, name string, labels map[string]string, mode policy.Mode) *istio.PeerAuthentication {
	o := &istio.PeerAuthentication{
		ObjectMeta: meta.ObjectMeta{Namespace: namespace, Name: name},
		Spec: security.PeerAuthentication{Mtls: &security.PeerAuthentication_MutualTLS{
			Mode: security.PeerAuthentication_MutualTLS_Mode(security.PeerAuthentication_MutualTLS_Mode_value[mode.String()]),
		}},
	}
	if labels != nil {
		o.Spec.Selector = &selector.WorkloadSelector{MatchLabels: labels}
	}
	return o
}
