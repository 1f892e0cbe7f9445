package report

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
)

// install makes the kinds of policies as the manifests do.
func install(t *testing.T, d dynamic.Interface) {
	t.Helper()
	definitions := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	for _, name := range []string{"peerauthentications", "destinationrules"} {
		content, err := os.ReadFile("../../../../daemonset/crds/" + name + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(content, &o.Object); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Resource(definitions).Create(t.Context(), o, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, k := range policyKinds() {
		eventually(t, k.kind+" is served", func() bool {
			_, err := d.Resource(schema.GroupVersionResource{Group: k.group, Version: "v1", Resource: k.plural}).List(t.Context(), metav1.ListOptions{})
			return err == nil
		})
	}
}

func policies() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "peerauthentications"}
}

func newPolicy(t *testing.T, d dynamic.Interface, name, mode string) PolicyRef {
	t.Helper()
	o, err := d.Resource(policies()).Namespace("n").Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
		"metadata": map[string]any{"name": name},
		"spec":     map[string]any{"mtls": map[string]any{"mode": mode}},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return PolicyRef{Kind: "PeerAuthentication", Namespace: "n", Name: name, UID: string(o.GetUID()), Generation: o.GetGeneration()}
}

// quick is the election in a test's time.
func quick() timing {
	return timing{
		lease: 3 * time.Second, renew: 2 * time.Second, retry: 500 * time.Millisecond,
		lookMin: 500 * time.Millisecond, lookMax: time.Second, stale: 3 * time.Second, patience: 6 * time.Second,
		tick: time.Second,
	}
}

// writer runs a PolicyStatus until the returned function is called, or the test ends.
func writer(t *testing.T, config *rest.Config, identity string) (s *PolicyStatus, stop func()) {
	t.Helper()
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	d, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	s = NewPolicyStatus(PolicyOptions{Client: c, Dynamic: d, Namespace: "culvert-system", Identity: identity,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	s.timing = quick()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.Run(ctx)
	}()
	stop = func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(15 * time.Second):
			t.Error("PolicyStatus does not end")
		}
	}
	t.Cleanup(stop)
	return s, stop
}

func TestAPIPolicyStatus(t *testing.T) {
	s, c := startAPI(t)
	d, err := dynamic.NewForConfig(s.Config(""))
	if err != nil {
		t.Fatal(err)
	}
	install(t, d)
	get := func(name string) *unstructured.Unstructured {
		o, err := d.Resource(policies()).Namespace("n").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	good, bad := newPolicy(t, d, "good", "STRICT"), newPolicy(t, d, "bad", "PERMISSIVE")
	// Istio's condition in the same list.
	foreign := get("good")
	if err := unstructured.SetNestedSlice(foreign.Object, []any{map[string]any{"type": "Reconciled", "status": "True"}}, "status", "conditions"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Resource(policies()).Namespace("n").UpdateStatus(t.Context(), foreign, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	first, stopFirst := writer(t, s.Config(agentToken), "node-1")
	second, _ := writer(t, s.Config(agentToken), "node-2")
	tell := func(valid []PolicyRef, problems ...PolicyProblem) {
		first.Policies(valid, problems)
		second.Policies(valid, problems)
	}
	problem := PolicyProblem{bad, errors.New("spec.portLevelMtls: needs a selector")}
	tell([]PolicyRef{good}, problem)

	eventually(t, "conditions", func() bool {
		g, ok := standing(get("good"))
		b, also := standing(get("bad"))
		return ok && also && g.accepted && g.generation == 1 && !b.accepted && b.message == problem.Err.Error()
	})
	if n := len(conditions(get("good"))); n != 2 {
		t.Errorf("%d conditions, want Istio's too: %v", n, conditions(get("good")))
	}
	if first.Leads() == second.Leads() {
		t.Fatalf("first leads: %v, second leads: %v", first.Leads(), second.Leads())
	}
	rejected := func() (n int) {
		list, err := c.CoreV1().Events("n").List(t.Context(), metav1.ListOptions{FieldSelector: "reason=PolicyRejected,involvedObject.uid=" + bad.UID})
		if err != nil {
			t.Fatal(err)
		}
		return len(list.Items)
	}
	eventually(t, "event", func() bool { return rejected() == 1 })

	// Told the same again, and by a new leader, it writes nothing.
	versions := get("good").GetResourceVersion() + get("bad").GetResourceVersion()
	for range 5 {
		tell([]PolicyRef{good}, problem)
		time.Sleep(20 * time.Millisecond)
	}
	leader, next := first, second
	if second.Leads() {
		leader, next = second, first
	}
	if leader.Writes() != 2 {
		t.Errorf("%d writes, want 2", leader.Writes())
	}
	if leader == first {
		stopFirst()
		begin := time.Now()
		eventually(t, "another leads", next.Leads)
		t.Logf("another leads %v after the first gave the lease back", time.Since(begin).Round(time.Millisecond))
		time.Sleep(500 * time.Millisecond)
		if next.Writes() != 0 || rejected() != 1 {
			t.Errorf("the new leader wrote %d conditions; %d events", next.Writes(), rejected())
		}
		leader = next
	}
	if now := get("good").GetResourceVersion() + get("bad").GetResourceVersion(); now != versions {
		t.Error("something was written although nothing changed")
	}

	// It is repaired: a new generation, accepted.
	bad.Generation = change(t, d, "bad", "STRICT")
	leader.Policies([]PolicyRef{good, bad}, nil)
	eventually(t, "accepted", func() bool {
		v, ok := standing(get("bad"))
		return ok && v.accepted && v.generation == bad.Generation
	})
	if err := d.Resource(policies()).Namespace("n").Delete(t.Context(), "bad", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	bad.Generation++ // the watch is behind: it tells of what is no more
	leader.Policies([]PolicyRef{good, bad}, nil)
	leader.Policies([]PolicyRef{good}, nil)
	t.Log(yamlOf(t, get("good").Object["status"]))
}

func change(t *testing.T, d dynamic.Interface, name, mode string) int64 {
	t.Helper()
	for {
		o, err := d.Resource(policies()).Namespace("n").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := unstructured.SetNestedField(o.Object, mode, "spec", "mtls", "mode"); err != nil {
			t.Fatal(err)
		}
		o, err = d.Resource(policies()).Namespace("n").Update(t.Context(), o, metav1.UpdateOptions{})
		if err == nil {
			return o.GetGeneration()
		}
		if !apierrors.IsConflict(err) {
			t.Fatal(err)
		}
	}
}

func yamlOf(t *testing.T, v any) string {
	t.Helper()
	b, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
