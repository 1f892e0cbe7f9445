package exec

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
)

// listing answers with a pod or node on each page.
func listing(kind string, items ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		n := 0
		if next := r.URL.Query().Get("continue"); next != "" {
			fmt.Sscan(next, &n)
		}
		next, item := "", ""
		if n < len(items) {
			item = items[n]
		}
		if n+1 < len(items) {
			next = fmt.Sprint(n + 1)
		}
		fmt.Fprintf(w, `{"kind":"%sList","apiVersion":"v1","metadata":{"resourceVersion":"1","continue":%q},"items":[%s]}`, kind, next, item)
	}
}

func agentPod(name, node, status string) string {
	return fmt.Sprintf(`{"metadata":{"namespace":"culvert-system","name":%q},"spec":{"nodeName":%q},"status":%s}`, name, node, status)
}

func fleetOf(t *testing.T, routes map[string]http.HandlerFunc) *Cluster {
	t.Helper()
	mux := http.NewServeMux()
	for path, h := range routes {
		mux.HandleFunc(path, h)
	}
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return clusterOf(t, &rest.Config{Host: server.URL})
}

func TestNodesAndTheirAgents(t *testing.T) {
	const running = `{"phase":"Running"}`
	c := fleetOf(t, map[string]http.HandlerFunc{
		"/api/v1/nodes": listing("Node", `{"metadata":{"name":"b"}}`, `{"metadata":{"name":"a"}}`),
		"/api/v1/namespaces/culvert-system/pods": listing("Pod", agentPod("one", "a", running),
			agentPod("old", "b", `{"phase":"Failed"}`), agentPod("new", "b", running),
			agentPod("stuck", "c", `{"phase":"Pending","containerStatuses":[{"state":{"waiting":{"reason":"ImagePullBackOff"}}}]}`),
			agentPod("nowhere", "", `{"phase":"Pending"}`),
			`{"metadata":{"namespace":"culvert-system","name":"noroom"},"status":{"phase":"Pending"},"spec":{"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":
				{"nodeSelectorTerms":[{"matchFields":[{"key":"metadata.name","operator":"In","values":["d"]}]}]}}}}}`),
		"/api/v1/pods":              listing("Pod", agentPod("x", "a", running)),
		"/api/v1/namespaces/n/pods": listing("Pod"),
	})
	nodes, err := c.AllNodes(t.Context())
	if err != nil || !slices.Equal(nodes, []string{"a", "b"}) {
		t.Errorf("%v: nodes %q", err, nodes)
	}
	agents, err := c.AgentNodes(t.Context())
	want := map[string]string{"a": "", "b": "", "c": "agent (pod stuck) does not run: ImagePullBackOff",
		"d": "agent (pod noroom) does not run: it is Pending"}
	if err != nil || !maps.Equal(agents, want) {
		t.Errorf("%v: agents %q, want %q", err, agents, want)
	}
	pods, err := c.PodsNamed(t.Context(), "x")
	if err != nil || !slices.Equal(pods, []string{"culvert-system/x"}) {
		t.Errorf("%v: %q", err, pods)
	}
	if pods, err = c.PodsIn(t.Context(), "n"); err != nil || len(pods) != 0 {
		t.Errorf("%v: %q", err, pods)
	}
}

func TestNodesThatMayNotBeListed(t *testing.T) {
	c := fleetOf(t, map[string]http.HandlerFunc{"/": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"no","reason":"Forbidden","code":403}`)
	}})
	if _, err := c.AllNodes(t.Context()); err == nil || !strings.Contains(err.Error(), "API server: nodes") {
		t.Error(err)
	}
	if _, err := c.AgentNodes(t.Context()); err == nil || !strings.Contains(err.Error(), "pods of namespace culvert-system") {
		t.Error(err)
	}
}
