package kube

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/culvert-mesh/culvert/agent/source"
)

func any1(*source.Snapshot) bool { return true }

func pods(n int) func(*source.Snapshot) bool {
	return func(s *source.Snapshot) bool { return s.Pods() == n }
}

// TestNothingBeforeEverything: as long as one resource cannot be read, nothing is published.
func TestNothingBeforeEverything(t *testing.T) {
	for _, tc := range []struct {
		name, path string
		bad        http.HandlerFunc
	}{
		{"pods answer 500", podsPath, fail(500, "InternalError")},
		{"pods may not be listed", podsPath, fail(403, "Forbidden")},
		{"Services are half a list", servicesPath, text(listText("v1 Service", 1, "")[:40])},
		{"discovery answers 503", "/apis/security.istio.io", fail(503, "ServiceUnavailable")},
		{"a LIST of a kind that seems absent answers 503", policiesPath, fail(503, "ServiceUnavailable")},
		{"a LIST of a kind that seems absent answers 403", policiesPath, fail(403, "Forbidden")},
		{"no groups at all", "/apis", fail(404, "NotFound")},
		{"an empty list of groups", "/apis", text(`{}`)},
		{"discovery of an optional kind is a web page", "/apis/networking.k8s.io", text("<html>")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFakeAPI(t)
			f.mu.Lock()
			good := f.routes[tc.path]
			f.mu.Unlock()
			f.serve(tc.path, tc.bad)
			_, v := start(t, Options{Config: f.config()})
			time.Sleep(300 * time.Millisecond)
			if v.snapshot() != nil {
				t.Fatal("something was published")
			}
			f.serve(tc.path, good)
			v.wait(t, "the first snapshot", any1)
		})
	}
}

func TestTooManyRequests(t *testing.T) {
	f := newFakeAPI(t)
	var refused atomic.Int32
	f.serve(podsPath, func(w http.ResponseWriter, r *http.Request) {
		if refused.Add(1) <= 2 {
			w.Header().Set("Retry-After", "1")
			fail(http.StatusTooManyRequests, "TooManyRequests")(w, r)
			return
		}
		list("v1 Pod", 5, podText("a", "10.0.0.1", 4))(w, r)
	})
	begun := time.Now()
	_, v := start(t, Options{Config: f.config()})
	v.wait(t, "the pod", pods(1))
	if d := time.Since(begun); d < 2*time.Second {
		t.Errorf("Retry-After was not heeded: %v", d)
	}
}

// TestPagesExpire: a list whose continue token expires half way is read anew, and never published in part.
func TestPagesExpire(t *testing.T) {
	f := newFakeAPI(t)
	a, b, c := podText("a", "10.0.0.1", 4), podText("b", "10.0.0.2", 4), podText("c", "10.0.0.3", 4)
	var expired atomic.Int32
	f.serve(podsPath, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		switch {
		case isWatch(r):
			silent(w, r)
		case q.Get("continue") != "":
			expired.Add(1)
			fail(http.StatusGone, "Expired")(w, r)
		case q.Get("limit") != "":
			fmt.Fprint(w, listText("v1 Pod", 5, "token", a))
		default:
			fmt.Fprint(w, listText("v1 Pod", 6, "", a, b, c))
		}
	})
	_, v := start(t, Options{Config: f.config()})
	first := v.wait(t, "the first snapshot", any1)
	if first.Pods() != 3 || expired.Load() == 0 {
		t.Errorf("%d pods, %d pages expired", first.Pods(), expired.Load())
	}
}

// TestPages: a list in pages arrives as one.
func TestPages(t *testing.T) {
	f := newFakeAPI(t)
	f.serve(podsPath, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case isWatch(r):
			silent(w, r)
		case r.URL.Query().Get("continue") == "":
			fmt.Fprint(w, listText("v1 Pod", 5, "token", podText("a", "10.0.0.1", 4)))
		default:
			fmt.Fprint(w, listText("v1 Pod", 5, "", podText("b", "10.0.0.2", 4)))
		}
	})
	_, v := start(t, Options{Config: f.config()})
	if first := v.wait(t, "the first snapshot", any1); first.Pods() != 2 {
		t.Errorf("%d pods", first.Pods())
	}
}

// TestBrokenLists: whatever a list breaks with, what is known stays until one is whole.
func TestBrokenLists(t *testing.T) {
	whole := listText("v1 Pod", 9, "", podText("b", "10.0.0.2", 8), podText("c", "10.0.0.3", 8))
	for name, broken := range map[string]http.HandlerFunc{
		"half":                     text(whole[:len(whole)/2]),
		"not JSON":                 text("<html>gateway</html>"),
		"another kind":             text(`{"kind":"SecretList","apiVersion":"v1","metadata":{"resourceVersion":"9"},"items":[]}`),
		"a Status, of success":     text(`{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Success"}`),
		"an empty object":          text(`{}`),
		"a list without a version": text(`{"kind":"PodList","apiVersion":"v1","metadata":{},"items":[]}`),
		"a bad item":               text(listText("v1 Pod", 9, "", `{"metadata":"?"}`)),
		"500":                      fail(500, "InternalError"),
		"401":                      fail(401, "Unauthorized"),
		"404":                      fail(404, "NotFound"),
		"connection lost":          func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, whole[:90]); panic(http.ErrAbortHandler) },
		"half, but its length is right": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "90")
			fmt.Fprint(w, whole[:90])
		},
		"shorter than its length": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(whole)))
			fmt.Fprint(w, whole[:90])
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeAPI(t)
			first := listText("v1 Pod", 5, "", podText("a", "10.0.0.1", 4), podText("b", "10.0.0.2", 4))
			stop := make(chan struct{})
			f.serve(podsPath, listThenWatch(first, func(w http.ResponseWriter, r *http.Request) {
				w.(http.Flusher).Flush()
				select {
				case <-stop:
				case <-r.Context().Done():
				}
				events(event("ERROR", status(410, "Expired")))(w, r)
			}))
			_, v := start(t, Options{Config: f.config()})
			v.wait(t, "two pods", pods(2))
			f.serve(podsPath, broken)
			before := f.listed(podsPath)
			close(stop)
			same := func(s *source.Snapshot) bool { return s.Pods() == 2 && s.PodByAddress(addr("10.0.0.1")) != nil }
			v.steady(t, "the first list", 300*time.Millisecond, same)
			if f.listed(podsPath) == before {
				t.Error("the broken list was not asked for")
			}
			f.serve(podsPath, listThenWatch(whole, silent))
			v.wait(t, "the new list", func(s *source.Snapshot) bool {
				return s.Pods() == 2 && s.PodByAddress(addr("10.0.0.1")) == nil && s.PodByAddress(addr("10.0.0.3")) != nil
			})
		})
	}
}

// TestWatchBreaks: a watch goes on where it was, whatever ended it, and events of half an object change nothing.
func TestWatchBreaks(t *testing.T) {
	f := newFakeAPI(t)
	b := podText("b", "10.0.0.2", 6)
	var watches atomic.Int32
	f.serve(podsPath, listThenWatch(listText("v1 Pod", 5, "", podText("a", "10.0.0.1", 4)), func(w http.ResponseWriter, r *http.Request) {
		switch watches.Add(1) {
		case 1:
			events(event("ADDED", b), event("ADDED", podText("x", "10.0.0.9", 7))[:60])(w, r)
		case 2:
			if got := r.URL.Query().Get("resourceVersion"); got != "6" {
				t.Errorf("the watch goes on from %s", got)
			}
			events(event("DELETED", podText("a", "10.0.0.1", 8)), event("ADDED", podText("c", "10.0.0.3", 9)))(w, r)
		default:
			silent(w, r)
		}
	}))
	_, v := start(t, Options{Config: f.config()})
	v.wait(t, "b and c", func(s *source.Snapshot) bool {
		return s.Pods() == 2 && s.PodByAddress(addr("10.0.0.2")) != nil && s.PodByAddress(addr("10.0.0.3")) != nil
	})
	if n := f.listed(podsPath); n != 1 {
		t.Errorf("%d lists", n)
	}
}

// TestForbiddenVerb: one verb missing is named once, and what can be read is.
func TestForbiddenVerb(t *testing.T) {
	f := newFakeAPI(t)
	f.serve(podsPath, listThenWatch(listText("v1 Pod", 5, "", podText("a", "10.0.0.1", 4)), fail(403, "Forbidden")))
	log, registry := &logged{}, prometheus.NewRegistry()
	s, v := start(t, Options{Config: f.config(), Logger: log.logger(), Registerer: registry})
	v.wait(t, "the pod", pods(1))
	f.serve(podsPath, listThenWatch(listText("v1 Pod", 6, "", podText("a", "10.0.0.1", 4), podText("b", "10.0.0.2", 6)), fail(403, "Forbidden")))
	v.wait(t, "what a later list has", pods(2))
	lines := log.lines(func(e map[string]any) bool { return e["reason"] == "Forbidden" })
	if len(lines) != 1 || lines[0]["resource"] != "pods" || lines[0]["verb"] != "watch" {
		t.Errorf("log: %v", lines)
	}
	failures := s.metrics.failures.WithLabelValues("pods", "Forbidden")
	for deadline := time.Now().Add(eventually); testutil.ToFloat64(failures) < 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%v failures counted", testutil.ToFloat64(failures))
		}
	}
	i := slices.IndexFunc(s.metrics.health, func(h *health) bool { return h.resource == "pods" })
	if s.metrics.health[i].stale() == 0 {
		t.Error("pods without a watch are not stale")
	}
	if n, err := testutil.GatherAndCount(registry, "culvert_source_stale_seconds"); n != len(s.metrics.health) || err != nil {
		t.Errorf("%d gauges, %v", n, err)
	}
	f.serve(podsPath, listThenWatch(listText("v1 Pod", 6, "", podText("a", "10.0.0.1", 4), podText("b", "10.0.0.2", 6)),
		func(w http.ResponseWriter, r *http.Request) {
			events(event("DELETED", podText("b", "10.0.0.2", 7)))(w, r)
			silent(w, r)
		}))
	v.wait(t, "one pod", pods(1))
	for deadline := time.Now().Add(eventually); s.metrics.health[i].stale() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("pods stay stale")
		}
	}
}

// TestTokenExpires: a token that was renewed in its file is found there.
func TestTokenExpires(t *testing.T) {
	f := newFakeAPI(t)
	f.accept("first")
	file := filepath.Join(t.TempDir(), "token")
	write := func(token string) {
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first")
	f.serve(podsPath, list("v1 Pod", 5, podText("a", "10.0.0.1", 4)))
	config := f.config()
	config.BearerTokenFile = file
	_, v := start(t, Options{Config: config})
	v.wait(t, "the pod", pods(1))
	f.accept("second")
	f.serve(podsPath, list("v1 Pod", 6, podText("a", "10.0.0.1", 4), podText("b", "10.0.0.2", 6)))
	f.CloseClientConnections()
	v.steady(t, "the pod", 300*time.Millisecond, pods(1))
	write("second")
	v.wait(t, "both pods", pods(2))
}

// TestBadPolicies: garbage in a list costs nobody else.
func TestBadPolicies(t *testing.T) {
	f := newFakeAPI(t)
	good := policyText("n", "good", `{"mtls":{"mode":"STRICT"}}`)
	f.withPolicies(list("security.istio.io/v1 PeerAuthentication", 5, good,
		policyText("m", "typo", `{"mtls":{"mdoe":"STRICT"}}`), policyText("m", "number", `{"mtls":{"mode":7}}`),
		policyText("o", "list", `[1,2]`), `{"kind":"PeerAuthentication","apiVersion":"security.istio.io/v1","metadata":"?"}`,
	))
	_, v := start(t, Options{Config: f.config()})
	s := v.wait(t, "the first snapshot", any1)
	if !strictIn("n")(s) || len(s.Problems) != 4 {
		t.Errorf("policies %+v, problems %v", s.AllPolicies(), s.Problems)
	}
	if want := []string{"", "m", "o"}; !slices.Equal(s.UnreadablePolicies, want) {
		t.Errorf("unreadable %q", s.UnreadablePolicies)
	}
	f.withPolicies(list("security.istio.io/v1 PeerAuthentication", 6, `5`))
	f.CloseClientConnections()
	v.steady(t, "the policy", 300*time.Millisecond, strictIn("n"))
}

// TestKindGone: policies are forgotten when the API server confirms that it has none, and not before.
func TestKindGone(t *testing.T) {
	policies := list("security.istio.io/v1 PeerAuthentication", 5, policyText("n", "p", `{"mtls":{"mode":"STRICT"}}`))
	for _, tc := range []struct {
		name  string
		spoil func(*fakeAPI)
		gone  bool
	}{
		{"404 for the list alone", func(f *fakeAPI) { f.serve(policiesPath, nil) }, false},
		{"404 for everything of the group, 503 for the list", func(f *fakeAPI) {
			f.withPolicies(fail(503, "ServiceUnavailable"))
			f.serve("/apis/security.istio.io", nil)
		}, false},
		{"404 and 403 for the group", func(f *fakeAPI) {
			f.withPolicies(nil)
			f.serve("/apis/security.istio.io", fail(403, "Forbidden"))
		}, false},
		{"404 for all", func(f *fakeAPI) {
			f.withPolicies(nil)
			f.serve("/apis/security.istio.io", nil)
			f.serve("/apis", nil)
		}, false},
		{"500 for all", func(f *fakeAPI) {
			f.withPolicies(fail(500, "InternalError"))
			f.serve("/apis/security.istio.io", fail(500, "InternalError"))
		}, false},
		{"confirmed", func(f *fakeAPI) {
			f.withPolicies(nil)
			f.serve("/apis/security.istio.io", nil)
		}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFakeAPI(t)
			f.withPolicies(policies)
			_, v := start(t, Options{Config: f.config()})
			v.wait(t, "the policy", strictIn("n"))
			tc.spoil(f)
			f.CloseClientConnections()
			if tc.gone {
				v.wait(t, "no policy", func(s *source.Snapshot) bool { return len(s.AllPolicies()) == 0 })
			} else {
				v.steady(t, "the policy", 600*time.Millisecond, strictIn("n"))
			}
			f.withPolicies(policies)
			v.wait(t, "the policy", strictIn("n"))
		})
	}
}
