package nodepage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/html"
)

// told is a Source that says what the test tells it to.
type told struct {
	page  Page
	err   error
	hang  chan struct{} // if any: Page waits for it, or for its context
	calls atomic.Int32
}

func (s *told) Page(ctx context.Context) (Page, error) {
	s.calls.Add(1)
	if s.hang != nil {
		select {
		case <-s.hang:
		case <-ctx.Done():
			return Page{}, ctx.Err()
		}
	}
	return s.page, s.err
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func get(h http.Handler, path string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.Host = "localhost:15020"
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

const hostile = `"><script>alert(1)</script><img src=x onerror=alert(1)>'` + "\u202e\x1b[2J"

func hostilePage() Page {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	return Page{
		Node: hostile, Version: hostile, Time: now,
		Agent:        Agent{Problems: []string{hostile}, Stale: []string{hostile}},
		Tunnels:      []Tunnel{{Version: hostile, Problem: hostile}},
		Workloads:    []Workload{{Namespace: hostile, Pod: hostile, Why: hostile, Identity: hostile, Ports: []Port{{80, hostile, hostile}}}},
		Certificates: []Certificate{{Identity: hostile, Source: hostile, Error: hostile, NotAfter: now.Add(time.Hour)}},
		Edges:        []Edge{{From: hostile, To: hostile, Port: 80, Plaintext: 1, Refused: 1, MTLS: 1, SameNode: 1, Failed: 1}},
		Refusals:     []Refusal{{From: hostile, FromIdentity: hostile, To: hostile, Reason: hostile, Policy: hostile}},
	}
}

func TestHostileNamesStayText(t *testing.T) {
	w := get(Handler(&told{page: hostilePage()}, quiet()), "/?filter="+url.QueryEscape(`"><script>`))
	if w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	if body := w.Body.String(); strings.ContainsAny(body, "\u202e\x1b") {
		i := strings.IndexAny(body, "\u202e\x1b")
		t.Errorf("a control character got through: %q", body[max(0, i-60):i+10])
	}
	document, err := html.Parse(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	scripts := 0
	for n := range document.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		switch n.Data {
		case "script":
			scripts++
		case "img", "style", "iframe", "object":
			t.Errorf("the page has an element %s", n.Data)
		}
		for _, a := range n.Attr {
			if strings.HasPrefix(a.Key, "on") || a.Key == "style" {
				t.Errorf("%s has an attribute %s", n.Data, a.Key)
			}
		}
	}
	if scripts != 1 {
		t.Errorf("%d scripts, want the page's own", scripts)
	}
}

func TestHeadersForbidEverythingForeign(t *testing.T) {
	h := Handler(&told{}, quiet())
	for _, path := range []string{"/", "/sections", "/page.json", "/page.js", "/nowhere"} {
		w := get(h, path)
		policy := w.Header().Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} {
			if !strings.Contains(policy, want) {
				t.Errorf("%s: policy %q lacks %q", path, policy, want)
			}
		}
		if strings.Contains(policy, "unsafe") {
			t.Errorf("%s: policy %q", path, policy)
		}
		if got := w.Header().Get("X-Content-Type-Options"); got != "nosniff" {
			t.Errorf("%s: X-Content-Type-Options %q", path, got)
		}
	}
}

func TestOnlyOwnHostsAreServed(t *testing.T) {
	server := httptest.NewServer(Handler(&told{}, quiet()))
	defer server.Close()
	for host, want := range map[string]int{
		"localhost": 200, "LOCALHOST:15020": 200, "127.0.0.1:15020": 200, "[::1]:15020": 200, "[::1]": 200,
		"evil.example": 421, "evil.example:15020": 421, "localhost.evil.example": 421, "127.0.0.1.evil.example": 421, "10.0.0.7": 421, "0.0.0.0": 421,
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		response, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("Host %q: status %d, want %d", host, response.StatusCode, want)
		}
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Host = "192.0.2.1:15020"
	r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 15020}))
	if !ownHost(r) {
		t.Error("the address that the connection came in on is refused")
	}
}

func TestNothingCanBeWritten(t *testing.T) {
	h := Handler(&told{}, quiet())
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
		r := httptest.NewRequest(method, "/", nil)
		r.Host = "localhost"
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusMethodNotAllowed {
			t.Errorf("%s: status %d", method, w.Code)
		}
	}
}

func crowded() Page {
	p := Page{Node: "node-a", Version: "v1", Time: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), Agent: Agent{Synced: true}}
	for w := range 250 {
		id := fmt.Sprintf("spiffe://cluster.local/ns/team-%d/sa/app-%d", w%10, w)
		p.Workloads = append(p.Workloads, Workload{
			Namespace: fmt.Sprintf("team-%d", w%10), Pod: fmt.Sprintf("app-%d-5f7c8d9b4-x2x5k", w), Enrolled: true, Identity: id,
			Ports: []Port{{8080, "STRICT", "istio-system/default"}, {0, "PERMISSIVE", "default"}},
		})
		p.Certificates = append(p.Certificates, Certificate{Identity: id, Source: "CA", Workloads: 1, NotBefore: p.Time, NotAfter: p.Time.Add(24 * time.Hour)})
		for peer := range 100 {
			p.Edges = append(p.Edges, Edge{
				From: fmt.Sprintf("peers/client-%d", peer), To: fmt.Sprintf("team-%d/app-%d-5f7c8d9b4-x2x5k", w%10, w), Port: 8080,
				MTLS: uint64(1 + peer*w), Last: p.Time,
			})
		}
	}
	for i := range 4096 {
		p.Refusals = append(p.Refusals, Refusal{Time: p.Time.Add(-time.Duration(i) * time.Second), From: "10.0.0.1", To: "team-1/app-1", Port: 8080, Reason: strings.Repeat("long ", 1000)})
	}
	p.Edges[7].Refused, p.Edges[9].Plaintext = 1, 1
	return p
}

func TestPageIsBounded(t *testing.T) {
	h := Handler(&told{page: crowded()}, quiet())
	body := get(h, "/").Body.String()
	if len(body) > 1<<20 {
		t.Errorf("the page has %d bytes", len(body))
	}
	for _, want := range []string{"24960 more pairs are left out", "24900 more are left out", "3996 more are left out", "app-249-5f7c8d9b4-x2x5k"} {
		if !strings.Contains(body, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	refused, plain := strings.Index(body, "✕ 1 refused"), strings.Index(body, "◇ 1 plaintext")
	if refused < 0 || plain < refused {
		t.Errorf("refused at %d, plaintext at %d: want them shown, in this order", refused, plain)
	}
	if all := get(h, "/page.json").Body.Len(); all > 1<<20 {
		t.Errorf("page.json has %d bytes", all)
	}
	t.Logf("%d bytes", len(body))
}

func TestFilterAppliesToEverything(t *testing.T) {
	h := Handler(&told{page: crowded()}, quiet())
	var p Page
	if err := json.Unmarshal(get(h, "/page.json?filter=APP-7-").Body.Bytes(), &p); err != nil {
		t.Fatal(err)
	}
	if len(p.Workloads) != 1 || len(p.Edges) != 100 || len(p.Refusals) != 0 {
		t.Errorf("%d workloads, %d edges, %d refusals, want 1, 100, 0", len(p.Workloads), len(p.Edges), len(p.Refusals))
	}
	if code := get(h, "/?filter="+strings.Repeat("x", 101)).Code; code != http.StatusBadRequest {
		t.Errorf("a long filter: status %d", code)
	}
}

func TestSectionsAreThoseThatChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &told{page: hostilePage()}
		h := Handler(source, quiet())
		fetch := func(query url.Values) (all []section) {
			var answer struct{ Sections []section }
			if err := json.Unmarshal(get(h, "/sections?"+query.Encode()).Body.Bytes(), &answer); err != nil {
				t.Fatal(err)
			}
			return answer.Sections
		}
		tags := url.Values{}
		for _, s := range fetch(nil) {
			tags.Set(s.Name, s.Tag)
		}
		if len(tags) != len(sectionNames()) {
			t.Fatalf("%d sections, want %d", len(tags), len(sectionNames()))
		}
		if again := fetch(tags); len(again) != 0 {
			t.Errorf("%d sections though nothing has changed", len(again))
		}
		source.page.Workloads[0].Enrolled = true
		source.page.Workloads[0].Why = "label"
		if early := fetch(tags); len(early) != 0 {
			t.Error("the source was asked again within a second")
		}
		time.Sleep(fresh)
		var names []string
		for _, s := range fetch(tags) {
			names = append(names, s.Name)
		}
		if got := strings.Join(names, " "); got != "summary workloads" {
			t.Errorf("changed: %s", got)
		}
		if n := source.calls.Load(); n != 2 {
			t.Errorf("source was asked %d times, want 2", n)
		}
	})
}

func TestSourceThatFailsIsSaid(t *testing.T) {
	w := get(Handler(&told{err: errors.New("agent is ending")}, quiet()), "/")
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "agent is ending") || w.Header().Get("Retry-After") == "" {
		t.Errorf("status %d, %q", w.Code, w.Body)
	}
}

func TestSourceThatHangsHoldsNobodyForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := Handler(&told{hang: make(chan struct{})}, quiet())
		started := time.Now()
		codes := make(chan int, maxRequests)
		for range maxRequests {
			go func() { codes <- get(h, "/").Code }()
		}
		synctest.Wait()
		if code := get(h, "/").Code; code != http.StatusServiceUnavailable {
			t.Errorf("one too many: status %d", code)
		}
		if took := time.Since(started); took != 0 {
			t.Errorf("one too many waited for %s", took)
		}
		for range maxRequests {
			if code := <-codes; code != http.StatusServiceUnavailable {
				t.Errorf("status %d", code)
			}
		}
		if took := time.Since(started); took > sourceTimeout {
			t.Errorf("answers took %s", took)
		}
	})
}

func TestFiltersOfAMomentAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := Handler(&told{page: crowded()}, quiet())
		for i := range maxViews {
			if code := get(h, fmt.Sprintf("/?filter=none-%d", i)).Code; code != http.StatusOK {
				t.Fatalf("filter %d: status %d", i, code)
			}
		}
		if code := get(h, "/?filter=more").Code; code != http.StatusServiceUnavailable {
			t.Errorf("one filter too many: status %d", code)
		}
		time.Sleep(fresh)
		if code := get(h, "/?filter=more").Code; code != http.StatusOK {
			t.Errorf("a second later: status %d", code)
		}
	})
}

func TestManyPagesAtOnce(t *testing.T) {
	source := &told{page: crowded()}
	server := httptest.NewServer(Handler(source, quiet()))
	defer server.Close()
	var wait sync.WaitGroup
	var answered, turnedAway atomic.Int32
	for i := range 100 {
		wait.Go(func() {
			for range 5 {
				response, err := server.Client().Get(fmt.Sprintf("%s/sections?filter=app-%d-", server.URL, i%3))
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, response.Body)
				response.Body.Close()
				switch response.StatusCode {
				case http.StatusOK:
					answered.Add(1)
				case http.StatusServiceUnavailable:
					turnedAway.Add(1)
				default:
					t.Errorf("status %d", response.StatusCode)
				}
			}
		})
	}
	wait.Wait()
	t.Logf("%d answered, %d turned away, source asked %d times", answered.Load(), turnedAway.Load(), source.calls.Load())
	if answered.Load() == 0 {
		t.Error("nobody got an answer")
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 59 * time.Second: "59 s", 61 * time.Second: "1 min 1 s", 11 * time.Minute: "11 min", 26 * time.Hour: "26 h",
		23*time.Hour + 59*time.Minute: "23 h 59 min", 49 * time.Hour: "2 d 1 h",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%s) = %q, want %q", d, got, want)
		}
	}
}

func TestCertificateStates(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s := shown{Page: Page{Time: now}}
	for _, c := range []struct {
		certificate Certificate
		want        string
	}{
		{Certificate{}, "none yet"},
		{Certificate{NotBefore: now.Add(-2 * time.Hour), NotAfter: now}, "expired"},
		{Certificate{NotBefore: now, NotAfter: now.Add(time.Hour), Error: "CA is away"}, "renewal fails"},
		{Certificate{NotBefore: now.Add(-50 * time.Minute), NotAfter: now.Add(10 * time.Minute)}, "renewal is late"},
		{Certificate{NotBefore: now.Add(-10 * time.Minute), NotAfter: now.Add(50 * time.Minute)}, "valid"},
	} {
		if got := s.State(c.certificate).Text; got != c.want {
			t.Errorf("%+v: %s, want %s", c.certificate, got, c.want)
		}
	}
}

func BenchmarkPage(b *testing.B) {
	v := newViews(&told{page: crowded()})
	b.ReportAllocs()
	for b.Loop() {
		v.taken = time.Time{}
		if _, err := v.get(b.Context(), ""); err != nil {
			b.Fatal(err)
		}
	}
}
