package kube

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/agent/source/kube/apitest"
	"github.com/culvert-mesh/culvert/policy"
)

const clusterObjects = `
apiVersion: v1
kind: Node
metadata: {name: here, labels: {topology.kubernetes.io/zone: a}}
spec: {podCIDRs: [10.244.0.0/24, "fd00:244::/64"]}
---
apiVersion: v1
kind: Node
metadata: {name: there}
spec: {podCIDRs: [10.244.1.0/24, "fd00:244:0:1::/64"]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: near, namespace: shop, labels: {app: web}, annotations: {note: kept, culvert.dev/netns: /proc/1/ns/net}}
spec:
  nodeName: here
  serviceAccountName: web
  containers: [{name: c, image: i, ports: [{name: http, containerPort: 8080}, {name: dns, containerPort: 53, protocol: UDP}]}]
status: {phase: Running, podIPs: [{ip: 10.244.0.5}, {ip: "fd00:244::5"}], podIP: 10.244.0.5}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: shop, labels: {app: web}, annotations: {note: dropped, ambient.istio.io/redirection: enabled}}
spec:
  nodeName: there
  containers: [{name: c, image: i, ports: [{name: http, containerPort: 8080}]}]
status: {phase: Running, podIPs: [{ip: 10.244.1.5}], podIP: 10.244.1.5}
---
apiVersion: v1
kind: Pod
metadata: {name: over, namespace: shop}
spec: {nodeName: there, containers: [{name: c, image: i}]}
status: {phase: Succeeded, podIPs: [{ip: 10.244.1.9}], podIP: 10.244.1.9}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.80, externalIPs: [192.0.2.80], selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.0.5], nodeName: here, conditions: {ready: true}}
- {addresses: [10.244.1.6], nodeName: there, conditions: {ready: false, serving: false}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-2, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.1.5], nodeName: there, conditions: {ready: true}}`

const strictPolicy = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}`

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

func strictIn(namespace string) func(*source.Snapshot) bool {
	return func(s *source.Snapshot) bool {
		all := s.Policies(namespace)
		return len(all) == 1 && all[0].Mode == policy.Strict
	}
}

// TestRealCluster goes through the life of a cluster: no CRDs, objects, CRDs, bad objects, outages, uninstallation.
func TestRealCluster(t *testing.T) {
	server := apitest.Start(t, nil)
	a := newApplier(t, server)
	a.apply(clusterObjects)
	registry := prometheus.NewRegistry()
	s, v := start(t, Options{
		Config: server.Config(""), Registerer: registry, Namespace: "culvert-system", DaemonSet: "",
	})

	first := v.wait(t, "the first snapshot, without Istio's kinds", func(*source.Snapshot) bool { return true })
	if !first.Changes.All || first.Pods() != 2 {
		t.Errorf("first snapshot: %d pods, changes %+v", first.Pods(), first.Changes)
	}
	checkObjects(t, first)

	t.Run("CRDs appear", func(t *testing.T) {
		a.apply(readFile(t, "testdata/crds.yaml"))
		a.apply(strictPolicy)
		a.apply(`
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec: {host: web, futureField: {x: 1}, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}`)
		v.wait(t, "policy and rule", func(s *source.Snapshot) bool { return strictIn("shop")(s) && len(s.AllRules()) == 1 })
	})
	t.Run("a bad object costs no other", func(t *testing.T) { badObjects(t, a, v) })
	t.Run("API server away", func(t *testing.T) { outages(t, server, a, v, s) })
	t.Run("CRD deleted", func(t *testing.T) {
		a.delete(strings.Split(readFile(t, "testdata/crds.yaml"), "\n---\n")[0])
		v.wait(t, "no policies", func(s *source.Snapshot) bool { return len(s.AllPolicies()) == 0 && len(s.Problems) == 0 })
		a.apply(readFile(t, "testdata/crds.yaml"))
		a.apply(strictPolicy)
		v.wait(t, "policy again", strictIn("shop"))
	})
}

func checkObjects(t *testing.T, s *source.Snapshot) {
	t.Helper()
	near, far := s.PodByAddress(addr("fd00:244::5")), s.PodByAddress(addr("10.244.1.5"))
	if near == nil || far == nil || s.PodByAddress(addr("10.244.1.9")) != nil {
		t.Fatalf("pods: %+v, %+v", near, far)
	}
	if near.ServiceAccount != "web" || near.Ports["http"] != 8080 || len(near.ContainerPorts) != 1 ||
		near.Annotations["note"] != "kept" || near.NetnsPath != "" || near.UID == "" || near.Redirection != source.RedirectionAbsent {
		t.Errorf("local pod %+v", near)
	}
	if far.ServiceAccount != "default" || far.Ports != nil || far.Annotations != nil || far.Redirection != source.RedirectionEnabled ||
		far.Labels["app"] != "web" || far.Node != "there" || far.Created.IsZero() {
		t.Errorf("remote pod %+v", far)
	}
	web := s.ServiceByAddress(netip.MustParseAddrPort("10.96.0.80:80"))
	if web == nil || web != s.ServiceByAddress(netip.MustParseAddrPort("192.0.2.80:80")) {
		t.Fatalf("Service %+v", web)
	}
	if e := web.Ports[0].Endpoints; len(e) != 2 || e[0].String() != "10.244.0.5:8080" || e[1].String() != "10.244.1.5:8080" {
		t.Errorf("endpoints %v", e)
	}
	ranges := "10.96.0.0/16 10.244.0.0/23 fd00:96::/112 fd00:244::/63"
	got := make([]string, len(s.Ranges))
	for i, r := range s.Ranges {
		got[i] = r.String()
	}
	if strings.Join(got, " ") != ranges {
		t.Errorf("ranges %v, want %s", got, ranges)
	}
	if s.Namespace("shop").Labels["istio.io/dataplane-mode"] != "ambient" {
		t.Error("the namespace has no labels")
	}
}

func badObjects(t *testing.T, a *applier, v *view) {
	a.apply(`
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: SOMETIMES}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: never, namespace: default}
spec: {portLevelMtls: {"70000": {mode: STRICT}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: spec-is-text, namespace: kube-system}
spec: "STRICT"
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: good, namespace: kube-public}
spec: {mtls: {mode: DISABLE}}`)
	s := v.wait(t, "three problems", func(s *source.Snapshot) bool { return len(s.Problems) == 3 && len(s.Policies("kube-public")) == 1 })
	if !strictIn("shop")(s) {
		t.Error("the last good version did not stay")
	}
	if s.PolicyUnreadable("shop", "istio-system") || !s.PolicyUnreadable("default", "istio-system") ||
		!s.PolicyUnreadable("kube-system", "istio-system") || s.PolicyUnreadable("kube-public", "istio-system") {
		t.Errorf("unreadable %v", s.UnreadablePolicies)
	}
	a.apply(strictPolicy)
	a.delete("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: never, namespace: default}")
	a.delete("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: spec-is-text, namespace: kube-system}")
	v.wait(t, "no problems", func(s *source.Snapshot) bool { return len(s.Problems) == 0 && len(s.UnreadablePolicies) == 0 })
}

func outages(t *testing.T, server *apitest.Server, a *applier, v *view, s *Source) {
	whole := func(s *source.Snapshot) bool { return strictIn("shop")(s) && s.Pods() == 2 }
	before := v.count()
	server.StopAPI()
	v.steady(t, "the last state", 2*time.Second, whole)
	stale := 0
	for _, h := range s.metrics.health {
		if h.stale() > 0 {
			stale++
		}
	}
	if stale != len(s.metrics.health) {
		t.Errorf("%d of %d resources are stale", stale, len(s.metrics.health))
	}
	server.StartAPI()
	a.apply(strings.Replace(strictPolicy, "STRICT", "PERMISSIVE", 1))
	v.wait(t, "a change after the restart", func(s *source.Snapshot) bool {
		all := s.Policies("shop")
		return len(all) == 1 && all[0].Mode == policy.Permissive
	})
	if s := v.snapshot(); s.Pods() != 2 {
		t.Errorf("%d pods", s.Pods())
	}
	t.Logf("%d snapshots since before the outage", v.count()-before)
	a.apply(strictPolicy)
	v.wait(t, "STRICT", whole)
	deadline := time.Now().Add(eventually)
	for {
		if stale = 0; time.Now().After(deadline) {
			t.Fatalf("%d resources stay stale", stale)
		}
		for _, h := range s.metrics.health {
			if h.stale() > 0 {
				stale++
			}
		}
		if stale == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

const agentRole = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: agent}
rules:
- {apiGroups: [""], resources: [pods, services, namespaces, nodes], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
- {apiGroups: [networking.k8s.io], resources: [servicecidrs], verbs: [list, watch]}
- {apiGroups: [security.istio.io], resources: [peerauthentications], verbs: [list, watch]}
- {apiGroups: [networking.istio.io], resources: [destinationrules], verbs: [list, watch]}
- {apiGroups: [""], resources: [namespaces], verbs: [get]}
- {apiGroups: [apps], resources: [daemonsets], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: agent}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: agent}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: agent}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: discovery}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:discovery}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: agent}]`

const ownObjects = `
apiVersion: v1
kind: Namespace
metadata: {name: culvert-system}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: culvert-agent, namespace: culvert-system}
spec:
  selector: {matchLabels: {app: agent}}
  template: {metadata: {labels: {app: agent}}, spec: {containers: [{name: agent, image: i}]}}`

// TestRealLeastRights: with the verbs named here everything works; with one less it says which, and publishes nothing.
func TestRealLeastRights(t *testing.T) {
	server := apitest.Start(t, map[string]string{"agent-token": "agent"})
	a := newApplier(t, server)
	a.apply(strings.ReplaceAll(agentRole, "pods, services, ", "services, "))
	a.apply(ownObjects)
	applyOwnPod(t, a, server)
	a.apply(readFile(t, "testdata/crds.yaml"))
	a.apply(defaultPolicy)
	log := &logged{}
	s, v := start(t, Options{
		Config: server.Config("agent-token"), Logger: log.logger(), Namespace: "culvert-system", DaemonSet: "culvert-agent", Pod: "agent-1",
	})
	forbidden := func(e map[string]any) bool { return e["reason"] == "Forbidden" }
	deadline := time.Now().Add(eventually)
	for len(log.lines(forbidden)) < 3 && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
	for _, e := range log.lines(forbidden) {
		if e["resource"] != "pods" && e["verb"] != "list own pod" {
			t.Errorf("log: %v", e)
		}
	}
	if v.snapshot() != nil {
		t.Error("something was published although pods are not known")
	}
	a.apply(agentRole)
	v.wait(t, "the first snapshot", strictIn("default"))
	if n := len(log.lines(forbidden)); n != 3 { // list and watch, and the own pod, once each
		t.Errorf("%d lines about what is forbidden", n)
	}
	if begun(s, 0) {
		t.Error("an uninstallation is seen where there is none")
	}
	latency(t, a, v)

	server.Pause()
	if v.steady(t, "the policy", time.Second, func(s *source.Snapshot) bool { return len(s.AllPolicies()) == 1 }); begun(s, 0) {
		t.Error("a server that hangs is taken for an uninstallation")
	}
	server.Resume()
	server.StopAPI()
	server.StartAPI()
	if begun(s, time.Second) {
		t.Error("a restart is taken for an uninstallation")
	}
	own := strings.Split(ownObjects, "\n---\n")[1]
	a.delete(own)
	a.apply(own)
	if begun(s, time.Second) {
		t.Error("a DaemonSet that is made anew is taken for an uninstallation")
	}
	a.delete(own)
	if !begun(s, eventually) {
		t.Error("the uninstallation is not seen")
	}
}

// applyOwnPod makes the pod that the agent runs in.
func applyOwnPod(t *testing.T, a *applier, server *apitest.Server) {
	t.Helper()
	set, err := server.Client().AppsV1().DaemonSets("culvert-system").Get(t.Context(), "culvert-agent", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a.apply(`
apiVersion: v1
kind: Pod
metadata:
  name: agent-1
  namespace: culvert-system
  ownerReferences: [{apiVersion: apps/v1, kind: DaemonSet, name: culvert-agent, controller: true, uid: ` + string(set.UID) + `}]
spec: {nodeName: here, hostNetwork: true, containers: [{name: agent, image: i}]}`)
}

const defaultPolicy = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: default}
spec: {mtls: {mode: STRICT}}`

// latency measures how long a change takes from the API server's answer to the Snapshot.
func latency(t *testing.T, a *applier, v *view) {
	t.Helper()
	var all []time.Duration
	for i := range 40 {
		mode := []string{"PERMISSIVE", "STRICT"}[i%2]
		want, err := policy.ParseMode(mode)
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		a.apply(strings.Replace(defaultPolicy, "STRICT", mode, 1))
		v.wait(t, mode, func(s *source.Snapshot) bool {
			all := s.Policies("default")
			return len(all) == 1 && all[0].Mode == want
		})
		all = append(all, time.Since(begun))
	}
	slices.Sort(all)
	t.Logf("from the request until the Snapshot: median %v, most %v", all[len(all)/2], all[len(all)-1])
	if all[len(all)-1] > 2*time.Second {
		t.Error("too slow")
	}
}
