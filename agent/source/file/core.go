package file

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
	core "k8s.io/api/core/v1"
	kjson "sigs.k8s.io/json"

	"github.com/culvert-mesh/culvert/agent/source"
)

// pod is a Pod with what only the computation of endpoints needs.
type pod struct {
	source.Pod
	ready bool
}

// service is a Service whose endpoints are not computed yet.
type service struct {
	source.Service
	ports    []core.ServicePort
	families []core.IPFamily
	// unready: endpoints are wanted whether they are ready or not.
	unready bool
}

// decode reads a manifest into one of Kubernetes' own types. Fields that the type does not have are
// accepted: a newer API server may have written them.
func decode(n *yaml.Node, into any) []fieldError {
	c := converter{anyKeys: true}
	v := c.value(n, "", 0)
	if errs := append(c.errs, c.odd...); len(errs) > 0 {
		return errs[:1]
	}
	text, err := json.Marshal(v)
	if err == nil {
		err = kjson.UnmarshalCaseSensitivePreserveInts(text, into)
	}
	if err == nil {
		return nil
	}
	wrongType := regexp.MustCompile(`cannot unmarshal (\S+) into Go (?:struct field [^.]*\.(\S+)|value) of type \S*?(\w+)$`)
	m := wrongType.FindStringSubmatch(err.Error())
	if m == nil {
		return []fieldError{{n.Line, "", err}}
	}
	return []fieldError{{lookup(n, m[2]), m[2], fmt.Errorf("a %s cannot be read as %s", m[1], m[3])}}
}

func readNamespace(o *object, h header, n *yaml.Node) []fieldError {
	o.namespace = &source.Namespace{Name: h.id.name, Labels: h.labels, Annotations: h.annotations}
	return decode(n, &core.Namespace{})
}

func readPod(o *object, h header, n *yaml.Node) []fieldError {
	var k core.Pod
	if errs := decode(n, &k); len(errs) > 0 {
		return errs
	}
	p := &pod{Pod: source.Pod{
		Namespace: h.id.namespace, Name: h.id.name, Labels: h.labels, Annotations: h.annotations,
		ServiceAccount: k.Spec.ServiceAccountName,
		Node:           k.Spec.NodeName,
		HostNetwork:    k.Spec.HostNetwork,
		NetnsPath:      h.annotations[source.NetnsAnnotation],
	}}
	if p.ServiceAccount == "" {
		p.ServiceAccount = k.Spec.DeprecatedServiceAccount
	}
	if p.ServiceAccount == "" {
		p.ServiceAccount = "default"
	}
	var errs []fieldError
	if errs = addContainers(p, &k, n); len(errs) > 0 {
		return errs
	}
	ended := k.Status.Phase == core.PodSucceeded || k.Status.Phase == core.PodFailed
	if !ended { // the addresses of a pod that ended may be another's by now
		p.Addresses, errs = podAddresses(&k, n)
	}
	p.ready = !ended && k.DeletionTimestamp == nil && isReady(&k)
	o.pod = p
	return errs
}

// addContainers collects names and ports; sidecars are init containers, so these count as well.
func addContainers(p *pod, k *core.Pod, n *yaml.Node) []fieldError {
	for _, list := range []struct {
		field      string
		containers []core.Container
	}{{"containers", k.Spec.Containers}, {"initContainers", k.Spec.InitContainers}} {
		for i, c := range list.containers {
			p.Containers = append(p.Containers, c.Name)
			for j, port := range c.Ports {
				if port.ContainerPort < 1 || port.ContainerPort > 65535 {
					field := fmt.Sprintf("spec.%s[%d].ports[%d].containerPort", list.field, i, j)
					return []fieldError{{lookup(n, field), field, fmt.Errorf("port %d is not between 1 and 65535", port.ContainerPort)}}
				}
				addPodPort(p, port)
			}
		}
	}
	return nil
}

func addPodPort(p *pod, port core.ContainerPort) {
	if port.Protocol != "" && port.Protocol != core.ProtocolTCP {
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

func podAddresses(k *core.Pod, n *yaml.Node) ([]netip.Addr, []fieldError) {
	texts := make([]string, 0, 2)
	for _, ip := range k.Status.PodIPs {
		texts = append(texts, ip.IP)
	}
	field := "status.podIPs"
	if len(texts) == 0 && k.Status.PodIP != "" {
		texts, field = append(texts, k.Status.PodIP), "status.podIP"
	}
	return addresses(texts, field, n)
}

func addresses(texts []string, field string, n *yaml.Node) ([]netip.Addr, []fieldError) {
	var out []netip.Addr
	for _, text := range texts {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return nil, []fieldError{{lookup(n, field), field, fmt.Errorf("%q is no IP address", text)}}
		}
		out = append(out, a.Unmap())
	}
	return out, nil
}

// isReady: without a Ready condition, as in a manifest written by hand, a pod counts as ready.
func isReady(k *core.Pod) bool {
	for _, c := range k.Status.Conditions {
		if c.Type == core.PodReady && c.Status == core.ConditionFalse {
			return false
		}
	}
	return true
}

func readService(o *object, h header, n *yaml.Node) []fieldError {
	var k core.Service
	if errs := decode(n, &k); len(errs) > 0 {
		return errs
	}
	s := &service{
		Service:  source.Service{Namespace: h.id.namespace, Name: h.id.name},
		ports:    k.Spec.Ports,
		families: k.Spec.IPFamilies,
		unready:  k.Spec.PublishNotReadyAddresses,
	}
	o.service = s
	if errs := checkServicePorts(k.Spec.Ports, n); len(errs) > 0 {
		return errs
	}
	if k.Spec.Type == core.ServiceTypeExternalName {
		s.ports = nil
		return nil
	}
	s.Selector = k.Spec.Selector
	texts := k.Spec.ClusterIPs
	if len(texts) == 0 && k.Spec.ClusterIP != "" {
		texts = []string{k.Spec.ClusterIP}
	}
	if len(texts) > 0 && texts[0] == core.ClusterIPNone {
		return nil
	}
	var errs []fieldError
	s.Addresses, errs = addresses(texts, "spec.clusterIP"+strings.Repeat("s", min(1, len(k.Spec.ClusterIPs))), n)
	return errs
}

func checkServicePorts(ports []core.ServicePort, n *yaml.Node) []fieldError {
	for i, p := range ports {
		field := fmt.Sprintf("spec.ports[%d].", i)
		if p.Port < 1 || p.Port > 65535 {
			return []fieldError{{lookup(n, field+"port"), field + "port", fmt.Errorf("port %d is not between 1 and 65535", p.Port)}}
		}
		if t := p.TargetPort; t.StrVal == "" && (t.IntVal < 0 || t.IntVal > 65535) {
			return []fieldError{{lookup(n, field+"targetPort"), field + "targetPort", fmt.Errorf("port %d is not between 1 and 65535", t.IntVal)}}
		}
	}
	return nil
}
