package kube

import (
	"net/netip"
	"strings"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/culvert-mesh/culvert/agent/source"
)

const (
	// injectAnnotation and proxyContainer are what enrolment looks at in any pod.
	injectAnnotation = "sidecar.istio.io/inject"
	proxyContainer   = "istio-proxy"
	// appliedAnnotation is a copy of the whole manifest.
	appliedAnnotation = "kubectl.kubernetes.io/last-applied-configuration"
	// mirrorAnnotation marks what stands in the API server for a static pod, which the runtime knows by the hash.
	mirrorAnnotation, hashAnnotation = "kubernetes.io/config.mirror", "kubernetes.io/config.hash"
)

// podConverter keeps pods of this node in full, and of others what tells who they are.
type podConverter struct {
	node   string
	labels *labelSets
}

// convert returns a *source.Pod, or nil for a pod that has ended, whose addresses may be another's by now, or that
// runs nowhere yet.
func (c podConverter) convert(o runtime.Object) any {
	k, ok := o.(*core.Pod)
	if !ok || k.Spec.NodeName == "" || k.Status.Phase == core.PodSucceeded || k.Status.Phase == core.PodFailed {
		return nil
	}
	p := &source.Pod{
		Namespace: share(k.Namespace), Name: strings.Clone(k.Name),
		UID: strings.Clone(string(k.UID)), Created: k.CreationTimestamp.Time,
		Redirection:    source.RedirectionAbsent,
		Labels:         c.labels.share(k.Labels),
		Owner:          share(ownerOf(k)),
		ServiceAccount: share(k.Spec.ServiceAccountName),
		Node:           share(k.Spec.NodeName),
		Addresses:      podAddresses(k),
		HostNetwork:    k.Spec.HostNetwork,
	}
	if k.Annotations[source.RedirectionAnnotation] == source.RedirectionValue {
		p.Redirection = source.RedirectionEnabled
	}
	if p.ServiceAccount == "" {
		p.ServiceAccount = "default"
	}
	if p.Node == c.node {
		addDetails(p, k)
		return p
	}
	if v, ok := k.Annotations[injectAnnotation]; ok {
		p.Annotations = c.labels.share(map[string]string{injectAnnotation: v})
	}
	for _, list := range [][]core.Container{k.Spec.Containers, k.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == proxyContainer {
				p.Containers = []string{proxyContainer}
			}
		}
	}
	return p
}

// addDetails adds what only this node's agent asks. The annotation with a path of a network namespace is not among
// it: in a cluster it would be the pod's author who names the path.
func addDetails(p *source.Pod, k *core.Pod) {
	for key, v := range k.Annotations {
		if key == appliedAnnotation {
			continue
		}
		if p.Annotations == nil {
			p.Annotations = map[string]string{}
		}
		p.Annotations[key] = v
	}
	if _, mirror := k.Annotations[mirrorAnnotation]; mirror {
		p.RuntimeUID = k.Annotations[hashAnnotation]
	}
	// A sidecar may be an init container.
	for _, list := range [][]core.Container{k.Spec.Containers, k.Spec.InitContainers} {
		for i := range list {
			p.Containers = append(p.Containers, list[i].Name)
			for _, port := range list[i].Ports {
				addPort(p, port)
			}
		}
	}
}

func addPort(p *source.Pod, port core.ContainerPort) {
	if port.Protocol != "" && port.Protocol != core.ProtocolTCP || port.ContainerPort < 1 || port.ContainerPort > 65535 {
		return
	}
	number := uint16(port.ContainerPort)
	p.ContainerPorts = append(p.ContainerPorts, number)
	if port.Name == "" {
		return
	}
	if p.Ports == nil {
		p.Ports = map[string]uint16{}
	}
	if _, taken := p.Ports[port.Name]; !taken {
		p.Ports[port.Name] = number
	}
}

func podAddresses(k *core.Pod) []netip.Addr {
	if len(k.Status.PodIPs) == 0 {
		return appendAddress(nil, k.Status.PodIP)
	}
	all := make([]netip.Addr, 0, len(k.Status.PodIPs))
	for _, ip := range k.Status.PodIPs {
		all = appendAddress(all, ip.IP)
	}
	return all
}

// appendAddress leaves out what is no address that others could reach.
func appendAddress(all []netip.Addr, text string) []netip.Addr {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
		return all
	}
	return append(all, a.Unmap())
}

// podTable puts pods into the index.
type podTable struct{ index *source.Index }

func (t podTable) set(_ objectKey, v any) { t.index.SetPod(v.(*source.Pod)) }

func (t podTable) remove(k objectKey) { t.index.DeletePod(k.namespace, k.name) }
