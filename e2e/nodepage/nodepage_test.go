package nodepage

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/agent/nodepage"
)

// script is a Source that says what the test tells it to.
type script struct {
	calls atomic.Int32

	mu   sync.Mutex
	page nodepage.Page
}

func (s *script) Page(context.Context) (nodepage.Page, error) {
	s.calls.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.page
	p.Time = time.Now()
	return p, nil
}

func (s *script) alter(how func(*nodepage.Page)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	how(&s.page)
}

// serve serves as the agent's status server does.
func serve(t *testing.T, source nodepage.Source) string {
	t.Helper()
	server := httptest.NewUnstartedServer(nodepage.Handler(source, slog.New(slog.NewTextHandler(t.Output(), nil))))
	server.Config.ReadTimeout, server.Config.WriteTimeout, server.Config.MaxHeaderBytes = 5*time.Second, 10*time.Second, 8<<10
	server.Start()
	t.Cleanup(server.Close)
	return server.URL + "/"
}

const id = "spiffe://cluster.local/ns/"

func village() nodepage.Page {
	now := time.Now()
	strict, others := nodepage.Port{Port: 9080, Mode: "STRICT", Policy: "default/reviews"}, nodepage.Port{Mode: "PERMISSIVE", Policy: "istio-system/default"}
	return nodepage.Page{
		Node: "worker-1", Version: "v0.5.0",
		Agent: nodepage.Agent{Started: now.Add(-26 * time.Hour), Synced: true, Stale: []string{"pods: not up to date for 1m30s (watch: connection refused)"}},
		Tunnels: []nodepage.Tunnel{
			{Version: "v0.4.9", Connected: now.Add(-3 * time.Hour), FlowsLost: 12, Problem: "not the agent’s version"},
			{Version: "v0.5.0", Connected: now.Add(-time.Minute)},
		},
		Workloads: []nodepage.Workload{
			{Namespace: "default", Pod: "productpage-v1-5f7c8d9b4-x2x5k", Enrolled: true, Why: "namespace label", Identity: id + "default/sa/bookinfo-productpage", Ports: []nodepage.Port{others}},
			{Namespace: "default", Pod: "reviews-v2-7d8f9c6b5-abcde", Enrolled: true, Why: "namespace label", Identity: id + "default/sa/bookinfo-reviews", Ports: []nodepage.Port{strict, others}},
			{Namespace: "legacy", Pod: "legacy-db-0", Enrolled: true, Why: "pod label", Identity: id + "legacy/sa/db", Ports: []nodepage.Port{{Port: 5432, Mode: "DISABLE", Policy: "legacy/db"}, others}},
			{Namespace: "legacy", Pod: "batch-28391-zzz9x", Why: "opted out by its label istio.io/dataplane-mode: none"},
			{Namespace: "default", Pod: "ratings-v1-6c5d4-q1w2e", Failed: true, Why: "its network namespace could not be proved: address 10.77.1.9 is not there"},
		},
		Certificates: []nodepage.Certificate{
			{Identity: id + "default/sa/bookinfo-productpage", Source: "culvert-ca.culvert-system.svc:15012", Workloads: 1, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(23 * time.Hour)},
			{Identity: id + "default/sa/bookinfo-reviews", Source: "culvert-ca.culvert-system.svc:15012", Workloads: 1, NotBefore: now.Add(-20 * time.Hour), NotAfter: now.Add(4 * time.Hour), Error: "rpc error: code = Unavailable desc = connection refused"},
			{Identity: id + "legacy/sa/db", Source: "culvert-ca.culvert-system.svc:15012", Workloads: 1, NotBefore: now.Add(-25 * time.Hour), NotAfter: now.Add(-time.Hour)},
		},
		Edges: []nodepage.Edge{
			{From: "default/productpage-v1-5f7c8d9b4-x2x5k", To: "default/reviews-v2-7d8f9c6b5-abcde", Port: 9080, MTLS: 31842, SameNode: 12, Last: now},
			{From: "ingress/gateway-0", To: "default/productpage-v1-5f7c8d9b4-x2x5k", Port: 9080, MTLS: 912, Last: now.Add(-time.Minute)},
			{From: "10.77.0.9", To: "default/reviews-v2-7d8f9c6b5-abcde", Port: 9080, Refused: 4, Last: now.Add(-3 * time.Second)},
			{From: "legacy/batch-28391-zzz9x", To: "legacy/legacy-db-0", Port: 5432, Plaintext: 60, Last: now.Add(-time.Hour)},
			{From: "default/productpage-v1-5f7c8d9b4-x2x5k", To: "legacy/legacy-db-0", Port: 5432, Plaintext: 3, Failed: 2, Last: now.Add(-time.Hour)},
			{From: "default/reviews-v2-7d8f9c6b5-abcde", To: "default/ratings-v1-6c5d4-q1w2e", Port: 9080, SameNode: 7, Last: now},
		},
		Refusals: []nodepage.Refusal{
			{Time: now.Add(-3 * time.Second), From: "10.77.0.9", To: "default/reviews-v2-7d8f9c6b5-abcde", Port: 9080, Reason: "plaintext on a STRICT port", Policy: "default/reviews", Suppressed: 3},
		},
	}
}

func TestPage(t *testing.T) {
	source := &script{page: village()}
	Check(t, StartBrowser(t, Here), Page{
		URL: serve(t, source), Name: "village", Pictures: os.Getenv("CULVERT_PICTURES"),
		Says: []string{
			"worker-1", "v0.5.0", "reviews-v2-7d8f9c6b5-abcde", "namespace label", "could not be proved", "STRICT", "by default/reviews",
			"spiffe://cluster.local/ns/legacy/sa/db", "renewal fails", "expired", "31842 mTLS", "60 plaintext", "4 refused",
			"plaintext on a STRICT port", "Culvert v0.4.9. Connected", "not the agent’s version", "not told the agent of 12 flows",
			"cluster not followed", "pods: not up to date for 1m30s",
		},
		Change: func() {
			source.alter(func(p *nodepage.Page) {
				p.Workloads = append([]nodepage.Workload{{Namespace: "default", Pod: "details-new", Enrolled: true, Identity: id + "default/sa/details"}}, p.Workloads...)
				p.Workloads[1], p.Workloads[0] = p.Workloads[0], p.Workloads[1]
			})
		},
		Then: "default/details-new",
	})
}

func TestCrowdedPage(t *testing.T) {
	page := village()
	for w := range 245 {
		page.Workloads = append(page.Workloads, nodepage.Workload{
			Namespace: "team", Pod: fmt.Sprintf("app-%d-5f7c8d9b4-x2x5k", w), Enrolled: true, Identity: fmt.Sprintf("%steam/sa/app-%d", id, w),
			Ports: []nodepage.Port{{Mode: "PERMISSIVE", Policy: "istio-system/default"}},
		})
		for peer := range 100 {
			page.Edges = append(page.Edges, nodepage.Edge{From: fmt.Sprintf("peers/client-%d", peer), To: fmt.Sprintf("team/app-%d-5f7c8d9b4-x2x5k", w), Port: 8080, MTLS: uint64(1 + peer*w), Last: time.Now()})
		}
	}
	b := StartBrowser(t, Here)
	url := serve(t, &script{page: page})
	Check(t, b, Page{URL: url, Name: "crowded", Pictures: os.Getenv("CULVERT_PICTURES"), Says: []string{"250", "pairs are left out", "app-244-5f7c8d9b4-x2x5k"}})

	tab := b.Open(t)
	tab.Screen(1280, 900, "light")
	tab.Go(url)
	tab.WaitText("Live")
	tab.Eval(`document.querySelector("#filter").focus()`, nil)
	tab.Type("app-17-")
	tab.Wait(`document.querySelectorAll("#workloads tbody tr").length === 1 && document.querySelectorAll("#connections tbody tr").length === 100`)
	tab.Wait(`location.search === "?filter=app-17-" && document.activeElement.id === "filter"`)
}

func TestHostileNamesRunNothing(t *testing.T) {
	const hostile = `<img src=x onerror="window.owned=1"><script>window.owned=1</script>"'>`
	page := village()
	page.Workloads[0].Pod, page.Workloads[1].Why, page.Edges[0].From, page.Refusals[0].Reason = hostile, hostile, hostile, hostile
	source := &script{page: page}
	tab := StartBrowser(t, Here).Open(t)
	tab.Go(serve(t, source))
	tab.WaitText("Live")
	source.alter(func(p *nodepage.Page) { p.Refusals[0].Reason, p.Version = hostile+" later", hostile })
	tab.WaitText(hostile + " later")
	var owned bool
	if tab.Eval("!!window.owned || document.images.length > 0", &owned); owned {
		t.Error("a name became markup")
	}
	if problems := tab.Problems(); len(problems) > 0 {
		t.Errorf("the console says:\n\t%s", lines(problems))
	}
}

// A browser has six connections to a host: pages must not hold one each.
func TestHundredPagesOpen(t *testing.T) {
	const pages = 100
	source := &script{page: village()}
	var loaded, asked atomic.Int32
	handler := nodepage.Handler(source, slog.New(slog.DiscardHandler))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/":
			loaded.Add(1)
		case "/sections":
			asked.Add(1)
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close) // after the browser has ended
	b := StartBrowser(t, Here)
	for range pages {
		if err := b.call("", "Target.createTarget", object{"url": server.URL, "background": true}, nil); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(patience); loaded.Load() < pages || asked.Load() < pages; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of %d pages loaded, %d requests for news", loaded.Load(), pages, asked.Load())
		}
	}
	before, started := source.calls.Load(), time.Now()
	tab := b.Open(t)
	tab.Go(server.URL)
	tab.WaitText("Live")
	source.alter(func(p *nodepage.Page) { p.Workloads[0].Why = "by the hundredth" })
	tab.WaitText("by the hundredth")
	calls, took := source.calls.Load()-before, time.Since(started)
	if most := int32(took/time.Second) + 2; calls > most {
		t.Errorf("the agent was asked %d times in %s, want at most %d", calls, took, most)
	}
	t.Logf("%d pages asked for news %d times; the agent was asked %d times in %s", loaded.Load(), asked.Load(), calls, took)
}

func TestAgentThatGoesAwayIsSaidAndComesBack(t *testing.T) {
	var away atomic.Bool
	handler := nodepage.Handler(&script{page: village()}, slog.New(slog.DiscardHandler))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if away.Load() {
			http.Error(w, "agent is ending", http.StatusServiceUnavailable)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	defer server.Close()
	tab := StartBrowser(t, Here).Open(t)
	tab.Go(server.URL)
	tab.WaitText("Live")
	away.Store(true)
	tab.WaitText("Not live: agent is ending")
	if text := tab.Text(); !strings.Contains(text, "legacy-db-0") {
		t.Error("what was known is gone")
	}
	away.Store(false)
	tab.Wait(`document.querySelector("#live").textContent === "Live"`)
}
