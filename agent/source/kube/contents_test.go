package kube

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/agent/source/kube/apitest"
	"github.com/culvert-mesh/culvert/policy"
)

const (
	namespaceObject = `{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"n","labels":{"istio.io/dataplane-mode":"ambient"}}}`
	serviceObject   = `{"kind":"Service","apiVersion":"v1","metadata":{"namespace":"n","name":"s"},"spec":{"clusterIP":"10.2.0.1","selector":{"app":"a"},"ports":[{"port":80,"targetPort":"http"}]}}`
	declaringPod    = `{"kind":"Pod","apiVersion":"v1","metadata":{"namespace":"n","name":"declares","labels":{"app":"a"}},
		"spec":{"nodeName":"there","containers":[{"name":"c","ports":[{"name":"http","containerPort":8080}]}]},"status":{"phase":"Running","podIP":"10.0.0.9"}}`
)

func TestReadAll(t *testing.T) {
	f := newFakeAPI(t)
	f.serve("/api/v1/namespaces", text(listText("v1 Namespace", 1, "", namespaceObject)))
	f.serve(servicesPath, text(listText("v1 Service", 1, "", serviceObject)))
	f.serve(podsPath, pages(t, podText("a", "10.0.0.1", 1), podText("b", "10.0.0.2", 1), declaringPod))
	f.withPolicies(text(listText("security.istio.io/v1 PeerAuthentication", 1, "",
		policyText("n", "good", `{"mtls":{"mode":"STRICT"}}`), policyText("n", "bad", `{"mtls":{"mode":"LOOSE"}}`))))
	c, err := readAll(t.Context(), f.config())
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Pods) != 3 || c.Pods[2].Ports["http"] != 8080 || c.Pods[2].Node != "there" {
		t.Errorf("pods %+v", c.Pods)
	}
	if len(c.Namespaces) != 1 || c.Namespaces[0].Labels["istio.io/dataplane-mode"] != "ambient" {
		t.Errorf("namespaces %+v", c.Namespaces)
	}
	if len(c.Services) != 1 || c.Services[0].Ports[0].Target != "http" || c.Services[0].Selector["app"] != "a" {
		t.Errorf("services %+v", c.Services)
	}
	if len(c.Policies) != 1 || c.Policies[0].Mode != policy.Strict || len(c.Rules) != 0 {
		t.Errorf("policies %+v, rules %+v", c.Policies, c.Rules)
	}
	if len(c.Problems) != 1 || c.Problems[0].Object != "PeerAuthentication n/bad" || !source.NewSnapshot("", c).PolicyUnreadable("n", "root") {
		t.Errorf("problems %v, unreadable %q", c.Problems, c.UnreadablePolicies)
	}
}

// pages answers with one object a page.
func pages(t *testing.T, objects ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		n := 0
		if next := r.URL.Query().Get("continue"); next != "" {
			if _, err := fmt.Sscan(next, &n); err != nil {
				t.Error(err)
			}
		}
		next := fmt.Sprint(n + 1)
		if n+1 == len(objects) {
			next = ""
		}
		fmt.Fprint(w, listText("v1 Pod", 1, next, objects[n]))
	}
}

func TestReadAllBeginsAgainWhenAListExpired(t *testing.T) {
	f := newFakeAPI(t)
	expired := 0
	whole := pages(t, podText("a", "10.0.0.1", 1), podText("b", "10.0.0.2", 1))
	f.serve(podsPath, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("continue") != "" && expired == 0 {
			expired++
			fail(http.StatusGone, "Expired")(w, r)
			return
		}
		whole(w, r)
	})
	c, err := readAll(t.Context(), f.config())
	if err != nil || len(c.Pods) != 2 {
		t.Errorf("%v: pods %+v", err, c.Pods)
	}
}

func TestReadAllNamesWhatItMayNotList(t *testing.T) {
	for path, want := range map[string]string{podsPath: "list pods", policiesPath: "list peerauthentications.security.istio.io"} {
		f := newFakeAPI(t)
		f.withPolicies(list("security.istio.io/v1 PeerAuthentication", 1))
		f.serve(path, fail(http.StatusForbidden, "Forbidden"))
		if _, err := readAll(t.Context(), f.config()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestReadWithoutAKubeconfig(t *testing.T) {
	t.Setenv("KUBECONFIG", "")
	t.Setenv("HOME", t.TempDir())
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := Read(t.Context(), Access{}); err == nil {
		t.Error("no error")
	}
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(t.Context(), Access{Kubeconfig: file}); err == nil || !strings.Contains(err.Error(), "kubeconfig") {
		t.Errorf("a broken one: %v", err)
	}
}

func TestStaleNamesResources(t *testing.T) {
	s, err := New(Options{Config: newFakeAPI(t).config(), Node: "n"})
	if err != nil {
		t.Fatal(err)
	}
	s.jobs[0].feed.health.failed(t.Context(), "list", fmt.Errorf("told to"))
	stale := s.Stale()
	if len(stale) != len(s.jobs) || !strings.Contains(stale[0], "peerauthentications.security.istio.io: not up to date for") || !strings.Contains(stale[0], "(list: Other)") {
		t.Errorf("%q", stale)
	}
	for _, j := range s.jobs {
		j.feed.health.read()
		j.feed.health.opened()
	}
	if stale := s.Stale(); len(stale) != 0 {
		t.Errorf("what is followed counts as stale: %q", stale)
	}
}

func TestReadAllOfARealServer(t *testing.T) {
	server := apitest.Start(t, nil)
	a := newApplier(t, server)
	a.apply(clusterObjects)
	c, err := readAll(t.Context(), server.Config(""))
	if err != nil || len(c.Policies)+len(c.Rules)+len(c.Problems) != 0 {
		t.Fatalf("without Istio's kinds: %v, %+v", err, c)
	}
	a.apply(readFile(t, "testdata/crds.yaml"))
	a.apply(strictPolicy)
	a.apply(`
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec: {host: web, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}`)
	deadline := time.Now().Add(eventually)
	for len(c.Policies) == 0 || len(c.Rules) == 0 { // a new kind is not served at once
		if c, err = readAll(t.Context(), server.Config("")); time.Now().After(deadline) {
			t.Fatalf("%v: %+v", err, c)
		}
		time.Sleep(50 * time.Millisecond)
	}
	ports := map[string]uint16{}
	for _, p := range c.Pods {
		ports[p.Name] = p.Ports["http"]
	}
	if !maps.Equal(ports, map[string]uint16{"near": 8080, "far": 8080}) {
		t.Errorf("pods and their ports %v", ports)
	}
	snapshot := source.NewSnapshot("", c)
	if !strictIn("shop")(snapshot) || snapshot.Namespace("shop").Labels["istio.io/dataplane-mode"] != "ambient" {
		t.Errorf("policies %+v, namespaces %+v", c.Policies, c.Namespaces)
	}
}
