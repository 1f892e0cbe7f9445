package walk

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/e2e/demo"
)

// pod is a running pod of the tests.
type pod struct {
	namespace, name, node string
	account               string
	ip                    map[int]netip.Addr // by IP version
}

func (p *pod) ref() string { return p.namespace + "/" + p.name }

func (p *pod) identity() string {
	return "spiffe://cluster.local/ns/" + p.namespace + "/sa/" + p.account
}

// at returns the address of a port.
func (p *pod) at(version int, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(p.ip[version], port)
}

// podObject is as much of a pod as is looked at.
type podObject struct {
	Metadata struct {
		Name, Namespace, UID, DeletionTimestamp string
		Labels, Annotations                     map[string]string
	}
	Spec struct {
		NodeName           string
		ServiceAccountName string
	}
	Status struct {
		Phase             string
		PodIPs            []struct{ IP netip.Addr }
		Conditions        []struct{ Type, Status, LastTransitionTime string }
		ContainerStatuses []struct {
			Name         string
			ContainerID  string
			RestartCount int
		}
	}
}

type podList struct{ Items []podObject }

func (o podObject) pod() *pod {
	p := &pod{namespace: o.Metadata.Namespace, name: o.Metadata.Name, node: o.Spec.NodeName, account: o.Spec.ServiceAccountName, ip: map[int]netip.Addr{}}
	for _, a := range o.Status.PodIPs {
		version := 4
		if a.IP.Is6() {
			version = 6
		}
		p.ip[version] = a.IP
	}
	return p
}

func (o podObject) isReady() bool {
	for _, c := range o.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

func (o podObject) restarts() int {
	n := 0
	for _, c := range o.Status.ContainerStatuses {
		n += c.RestartCount
	}
	return n
}

// spec is a pod to be made. It ends at once when it is told to.
type spec struct {
	namespace, name, node string
	account               string            // default: default
	labels                map[string]string // beside ours
	command               string            // arguments of the test application
	host                  bool              // in the node's network
	extra                 string            // further lines of the container, indented by four
}

func (p spec) manifest(image string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: v1\nkind: Pod\nmetadata:\n  name: %s\n  namespace: %s\n  labels:\n    culvert.test/walk: \"yes\"\n", p.name, p.namespace)
	for k, v := range p.labels {
		fmt.Fprintf(&b, "    %s: %q\n", k, v)
	}
	fmt.Fprintf(&b, "spec:\n  nodeName: %s\n  terminationGracePeriodSeconds: 1\n", p.node)
	if p.account != "" {
		fmt.Fprintf(&b, "  serviceAccountName: %s\n", p.account)
	}
	if p.host {
		b.WriteString("  hostNetwork: true\n  dnsPolicy: ClusterFirstWithHostNet\n")
	}
	fmt.Fprintf(&b, "  containers:\n  - name: app\n    image: %s\n    imagePullPolicy: IfNotPresent\n    args: [%s]\n", image, quoted(p.command))
	b.WriteString(p.extra)
	return b.String()
}

// quoted makes words the items of a YAML list.
func quoted(words string) string {
	var items []string
	for word := range strings.FieldsSeq(words) {
		items = append(items, fmt.Sprintf("%q", word))
	}
	return strings.Join(items, ", ")
}

// start makes pods and waits until they are ready. Those with an account get that as well.
func (s *suite) start(ctx context.Context, limit time.Duration, specs ...spec) error {
	if err := s.awaitGone(ctx, limit, specs); err != nil {
		return err
	}
	var docs []string
	for _, p := range specs {
		if p.account != "" {
			docs = append(docs, fmt.Sprintf("apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: %s\n  namespace: %s\n  labels:\n    culvert.test/walk: \"yes\"\n",
				p.account, p.namespace))
		}
		docs = append(docs, p.manifest(s.Tools))
	}
	if err := s.apply(ctx, strings.Join(docs, "---\n")); err != nil {
		return err
	}
	byNamespace := map[string][]string{}
	for _, p := range specs {
		delete(s.leaving, p.namespace+"/"+p.name)
		byNamespace[p.namespace] = append(byNamespace[p.namespace], p.name)
	}
	for namespace, names := range byNamespace {
		if err := s.waitPods(ctx, limit, append([]string{"--namespace=" + namespace}, names...)...); err != nil {
			return err
		}
	}
	return s.refresh(ctx)
}

// stop removes pods without waiting for their end.
func (s *suite) stop(ctx context.Context, namespace string, names ...string) error {
	_, err := s.kubectl(ctx, append([]string{"delete", "pod", "--namespace=" + namespace, "--ignore-not-found", "--wait=false",
		"--grace-period=1"}, names...)...)
	for _, name := range names {
		delete(s.pods, namespace+"/"+name)
		s.leaving[namespace+"/"+name] = true
	}
	return err
}

// awaitGone waits for the end of pods that were stopped and are now to be made again by the same names.
func (s *suite) awaitGone(ctx context.Context, limit time.Duration, specs []spec) error {
	for _, p := range specs {
		if !s.leaving[p.namespace+"/"+p.name] {
			continue
		}
		_, err := s.kubectl(ctx, "wait", "--for=delete", "pod/"+p.name, "--namespace="+p.namespace, "--timeout="+limit.String())
		if err != nil && !strings.Contains(err.Error(), "NotFound") {
			return fmt.Errorf("pod %s/%s is still ending: %w", p.namespace, p.name, err)
		}
	}
	return nil
}

// refresh learns the addresses of all pods of the tests.
func (s *suite) refresh(ctx context.Context) error {
	var list podList
	if err := s.getJSON(ctx, &list, "pods", "--all-namespaces", "--selector="+ours); err != nil {
		return err
	}
	for _, o := range list.Items {
		if o.Metadata.DeletionTimestamp == "" {
			p := o.pod()
			s.pods[p.ref()] = p
		}
	}
	return nil
}

// pod returns a pod by namespace/name.
func (s *suite) pod(ref string) (*pod, error) {
	p := s.pods[ref]
	if p == nil {
		return nil, fmt.Errorf("there is no pod %s", ref)
	}
	return p, nil
}

// twin is the name of a second pod of a workload of the walkthrough, on the other node; no Service leads to it.
func twin(ref string) string { return ref + "-twin" }

// near returns the pod of a client's workload that is on the server's node, or the one that is not.
func (s *suite) near(client, server, where string) (*pod, error) {
	to, err := s.pod(server)
	if err != nil {
		return nil, err
	}
	for _, ref := range []string{client, twin(client)} {
		if p := s.pods[ref]; p != nil && (p.node == to.node) == (where == sameNode) {
			return p, nil
		}
	}
	return nil, fmt.Errorf("no pod of %s: %s as %s", client, where, server)
}

// specimens are the pods of the walkthrough, each workload once on each node.
func (s *suite) specimens() []spec {
	var specs []spec
	for _, p := range demo.Pods() {
		labels := map[string]string{"app": p.Name}
		if p.OptedOut {
			labels["istio.io/dataplane-mode"] = "none"
		}
		first := spec{namespace: p.Namespace, name: p.Name, node: s.node(p.Node), account: p.Name, labels: labels, command: "serve --http 9080,9090",
			extra: "    ports:\n    - {name: http, containerPort: 9080}\n    - {name: admin, containerPort: 9090}\n"}
		second := first
		second.name, second.node = p.Name+"-twin", s.other(first.node)
		first.labels = map[string]string{"culvert.test/copy": "first"}
		for k, v := range labels {
			first.labels[k] = v
		}
		specs = append(specs, first)
		if s.nodes[0] != s.nodes[1] {
			specs = append(specs, second)
		}
	}
	return specs
}
