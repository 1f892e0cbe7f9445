package telemetry

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

func labels(source, destination string) Labels {
	return Labels{Reporter: ReporterSource, Source: PartyOf(source), Destination: PartyOf(destination), Security: SecurityMutualTLS, Flags: FlagsNone}
}

func id(name string) string { return "spiffe://cluster.local/ns/shop/sa/" + name }

// parse reads the text as Prometheus does.
func parse(t testing.TB, text []byte) map[string]*dto.MetricFamily {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return families
}

func text(t testing.TB, traffic *Traffic) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := traffic.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func sum(f *dto.MetricFamily) (total float64) {
	for _, m := range f.GetMetric() {
		total += m.GetCounter().GetValue()
	}
	return total
}

func labelsOf(m *dto.Metric) map[string]string {
	all := map[string]string{}
	for _, l := range m.GetLabel() {
		all[l.GetName()] = l.GetValue()
	}
	return all
}

func TestScrape(t *testing.T) {
	m := New()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(m)
	s := m.Traffic.Open(labels(id("till"), "spiffe://b.test/a\"b\\c\nd"))
	s.Transferred(5, 7)
	m.Traffic.Close(s)
	denied := labels(id("till"), "")
	denied.Flags, denied.Security = FlagsDenied, SecurityUnknown
	m.Traffic.Fail(denied)
	m.Observe(func() Gauges { return Gauges{PoolStreams: 3, AgentConnected: true} })

	answer := httptest.NewRecorder()
	m.Handler(registry).ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	families := parse(t, answer.Body.Bytes())
	want := map[string]float64{
		"istio_tcp_connections_opened_total": 1, "istio_tcp_connections_closed_total": 1, "istio_tcp_connections_failed_total": 1,
		"istio_tcp_received_bytes_total": 5, "istio_tcp_sent_bytes_total": 7,
	}
	for name, value := range want {
		f := families[name]
		if len(f.GetMetric()) != 1 || sum(f) != value || f.GetHelp() == "" || f.GetType() != dto.MetricType_COUNTER {
			t.Errorf("%s: got %v, want one of %v", name, f, value)
		}
	}
	got := labelsOf(families["istio_tcp_sent_bytes_total"].GetMetric()[0])
	for name, value := range map[string]string{
		"reporter": "source", "source_workload": "till", "source_workload_namespace": "shop", "source_principal": id("till"),
		"destination_workload": "unknown", "destination_workload_namespace": "unknown", "destination_principal": "spiffe://b.test/a\"b\\c\nd",
		"destination_service": "unknown", "request_protocol": "tcp", "connection_security_policy": "mutual_tls", "response_flags": "-",
	} {
		if got[name] != value {
			t.Errorf("label %s: got %q, want %q", name, got[name], value)
		}
	}
	if failed := labelsOf(families["istio_tcp_connections_failed_total"].GetMetric()[0]); failed["response_flags"] != "DENY" || failed["destination_principal"] != "unknown" {
		t.Errorf("failed: %v", failed)
	}
	for name, value := range map[string]float64{"culvert_tunnel_pool_streams": 3, "culvert_tunnel_agent_connected": 1} {
		if f := families[name]; f.GetMetric()[0].GetGauge().GetValue() != value {
			t.Errorf("%s: got %v, want %v", name, f, value)
		}
	}
}

// TestScrapeFlood: readers who do not read, compressed and not, keep nobody from a scrape.
func TestScrapeFlood(t *testing.T) {
	m := New()
	for i := range 2000 { // more than a reader's chunk
		m.Traffic.Close(m.Traffic.Open(labels(id("till"), id(fmt.Sprint("peer-", i)))))
	}
	handler := m.Handler(prometheus.NewRegistry())
	const readers = 20
	stalled := &stalledReader{arrived: make(chan struct{}, readers), free: make(chan struct{})}
	var served sync.WaitGroup
	for i := range readers {
		served.Go(func() {
			r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
			if i%2 == 0 {
				r.Header.Set("Accept-Encoding", "gzip")
			}
			defer func() {
				if cause := recover(); cause != http.ErrAbortHandler {
					t.Errorf("an answer that was cut off ends as if it were whole: %v", cause)
				}
			}()
			handler.ServeHTTP(stalled, r)
		})
		<-stalled.arrived
	}
	answer := httptest.NewRecorder()
	handler.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if n := len(parse(t, answer.Body.Bytes())["istio_tcp_connections_opened_total"].GetMetric()); n != 2000 {
		t.Errorf("%d series, want all", n)
	}
	close(stalled.free)
	served.Wait()
}

// TestScrapesShareWhatIsGathered: one gathers, the others of a second get the same; who gives up meanwhile is gone.
func TestScrapesShareWhatIsGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gathered, free := 0, make(chan struct{})
		handler := Handler(prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
			gathered++
			<-free
			return nil, nil
		}))
		var served sync.WaitGroup
		scrape := func(ctx context.Context) {
			handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodGet, "/metrics", nil))
		}
		for range 10 {
			served.Go(func() { scrape(t.Context()) })
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		scrape(ctx)
		close(free)
		served.Wait()
		if gathered != 1 {
			t.Errorf("gathered %d times for those of a second", gathered)
		}
		time.Sleep(fresh)
		if scrape(t.Context()); gathered != 2 {
			t.Errorf("gathered %d times, want what is new a second later", gathered)
		}
	})
}

// TestACollectorThatHangsHoldsUpNobodyForLong: those who ask are told to come again, those who come later at once, and
// it is not asked a second time before it has answered.
func TestACollectorThatHangsHoldsUpNobodyForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gathered, free := 0, make(chan struct{})
		handler := Handler(prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
			gathered++
			<-free
			return nil, nil
		}))
		for _, want := range []struct {
			status int
			took   time.Duration
		}{{http.StatusServiceUnavailable, gatherTimeout}, {http.StatusServiceUnavailable, 0}, {http.StatusOK, 0}} {
			if want.status == http.StatusOK {
				close(free)
				synctest.Wait()
			}
			began, answer := time.Now(), httptest.NewRecorder()
			handler.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
			if answer.Code != want.status || time.Since(began) != want.took || (answer.Header().Get("Retry-After") != "") != (want.status != http.StatusOK) {
				t.Errorf("status %d after %s, %v; want %+v", answer.Code, time.Since(began), answer.Header(), want)
			}
		}
		if gathered != 1 {
			t.Errorf("gathered %d times", gathered)
		}
	})
}

// TestScrapesTakeTurns: no more than two are rendered at a time.
func TestScrapesTakeTurns(t *testing.T) {
	s := newScrapes(prometheus.NewRegistry(), new(Traffic))
	for range rendersAtOnce {
		if err := (&reader{ctx: t.Context(), turns: s.turns}).takeTurn(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	answer := httptest.NewRecorder()
	func() {
		defer func() {
			if cause := recover(); cause != http.ErrAbortHandler {
				t.Errorf("who waited in vain gets an answer that looks whole: %v", cause)
			}
		}()
		s.ServeHTTP(answer, httptest.NewRequestWithContext(ctx, http.MethodGet, "/metrics", nil))
	}()
	if len(answer.Header()) != 0 {
		t.Error("one more was rendered at the same time")
	}
	for range rendersAtOnce {
		<-s.turns
	}
	s.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if len(answer.Header()) == 0 || len(s.turns) != 0 {
		t.Errorf("%d turns were not given back", len(s.turns))
	}
}

// TestScrapeCompressed: who asks for gzip gets it, and the same.
func TestScrapeCompressed(t *testing.T) {
	m := New()
	m.Traffic.Close(m.Traffic.Open(labels(id("till"), id("bank"))))
	handler := m.Handler(prometheus.NewRegistry())
	get := func(encoding string) *httptest.ResponseRecorder {
		answer := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		r.Header.Set("Accept-Encoding", encoding)
		handler.ServeHTTP(answer, r)
		return answer
	}
	plain := get("deflate")
	for range compressorsAtMost + 2 { // they are used again
		pressed := get("br, gzip")
		if got := pressed.Header().Get("Content-Encoding"); got != "gzip" {
			t.Fatalf("encoding %q", got)
		}
		unpacked, err := gzip.NewReader(pressed.Body)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(unpacked)
		if err != nil || !bytes.Equal(got, plain.Body.Bytes()) {
			t.Fatalf("got %q, %v, want %q", got, err, plain.Body)
		}
	}
	if got := get("gzip;q=0").Header().Get("Content-Encoding"); got != "" {
		t.Errorf("encoding %q for who does not want gzip", got)
	}
}
