package kube

import (
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/agent/source"
)

// TestFirstLists: what decides about policy is not read from an API server's cache, which may be of any age.
func TestFirstLists(t *testing.T) {
	f := newOwn(t)
	var mu sync.Mutex
	versions := map[string]string{} // of the first list
	note := func(next http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if !isWatch(r) {
				mu.Lock()
				if _, known := versions[r.URL.Path]; !known && r.URL.Query().Get("limit") != "1" {
					q := r.URL.Query()
					versions[r.URL.Path] = q.Get("resourceVersion") + q.Get("resourceVersionMatch")
				}
				mu.Unlock()
			}
			next(w, r)
		}
	}
	f.withPolicies(note(list("security.istio.io/v1 PeerAuthentication", 5)))
	f.serve(namespacePath, note(namespaceList("")))
	f.serve(setPath, note(listThenWatch(setList(setText("")), silent)))
	f.serve(podsPath, note(list("v1 Pod", 5)))
	_, v := start(t, ownOptions(f))
	v.wait(t, "the first snapshot", any1)
	for end := time.Now().Add(eventually); ; time.Sleep(10 * time.Millisecond) {
		mu.Lock()
		n := len(versions)
		mu.Unlock()
		if n == 4 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("lists of %v", versions)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for path, want := range map[string]string{policiesPath: "", namespacePath: "", setPath: "", podsPath: "0"} {
		if got, listed := versions[path]; !listed || got != want {
			t.Errorf("first list of %s: resource version %q, want %q", path, got, want)
		}
	}
}

// TestDistrust: policies that cannot be followed loosen nothing after a while, until they can be again.
func TestDistrust(t *testing.T) {
	everywhere := func(s *source.Snapshot) bool { return slices.Contains(s.UnreadablePolicies, "") }
	good := list("security.istio.io/v1 PeerAuthentication", 5, policyText("n", "p", `{"mtls":{"mode":"STRICT"}}`))
	for _, tc := range []struct {
		name string
		bad  http.HandlerFunc
	}{
		{"forbidden", fail(403, "Forbidden")},
		{"too many requests", fail(429, "TooManyRequests")},
		{"half a list", text(`{"kind":"PeerAuthent`)},
		{"no answer", silent},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFakeAPI(t)
			f.withPolicies(good)
			o := Options{Config: f.config(), pace: quickPace()}
			o.pace.distrust = time.Second
			_, v := start(t, o)
			v.wait(t, "the policy", strictIn("n"))
			f.withPolicies(tc.bad)
			f.CloseClientConnections()
			trusted := func(s *source.Snapshot) bool { return strictIn("n")(s) && !everywhere(s) }
			v.steady(t, "trust, as it has not been long", 700*time.Millisecond, trusted)
			v.wait(t, "distrust", everywhere)
			f.serve(podsPath, listThenWatch(listText("v1 Pod", 5, "", podText("new", "10.0.0.1", 5)),
				events(event("ADDED", podText("new", "10.0.0.1", 9)))))
			f.CloseClientConnections()
			v.wait(t, "a pod that came meanwhile", func(s *source.Snapshot) bool { return pods(1)(s) && everywhere(s) && strictIn("n")(s) })
			f.withPolicies(good)
			f.CloseClientConnections()
			v.wait(t, "trust", trusted)
		})
	}
	t.Run("all is well", func(t *testing.T) {
		f := newFakeAPI(t)
		o := Options{Config: f.config(), pace: quickPace()}
		o.pace.distrust = time.Second
		_, v := start(t, o) // without the kind, which counts as followed
		v.wait(t, "the first snapshot", any1)
		v.steady(t, "trust", 1500*time.Millisecond, func(s *source.Snapshot) bool { return !everywhere(s) })
	})
}
