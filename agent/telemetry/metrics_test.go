package telemetry

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/agent/datapath"
	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/policy"
)

// node is a made-up one.
type node struct {
	counters  map[string]uint64
	seen      map[datapath.ConnectionKind]uint64
	fills     []datapath.Fill
	plaintext []datapath.PlaintextCount
	reads     int
	err       error
	svids     []identity.Status
	state     *State
	hangs     bool
}

func (n *node) Counters() (map[string]uint64, error) { return n.counters, n.err }
func (n *node) Connections() (map[datapath.ConnectionKind]uint64, error) {
	return n.seen, n.err
}
func (n *node) Fill() ([]datapath.Fill, error) { n.reads++; return n.fills, n.err }
func (n *node) Plaintext() ([]datapath.PlaintextCount, error) {
	return n.plaintext, n.err
}

func (n *node) metrics() *Metrics {
	return New(Sources{Kernel: n, SVIDs: func() []identity.Status { return n.svids },
		State: func(ctx context.Context) (*State, error) {
			if n.hangs {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return n.state, nil
		}})
}

// series are the values that a scrape shows, by name and labels; histograms by their count.
func series(t testing.TB, c ...prometheus.Collector) map[string]float64 {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(c...)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			name := f.GetName()
			if len(labels) > 0 {
				name += "{" + strings.Join(labels, ",") + "}"
			}
			all[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return all
}

func want(t *testing.T, got, want map[string]float64) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if v, ok := got[name]; !ok || v != want[name] {
			t.Errorf("%s is %v (there: %v), want %v", name, v, ok, want[name])
		}
	}
}

func id(account string) spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://cluster.local/ns/shop/sa/" + account)
}

// ago is a time on the kernel's clock.
func ago(t testing.TB, d time.Duration) uint64 {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	return uint64(time.Duration(now.Nano()) - d)
}

func shop(t testing.TB) *node {
	peer := func(cookie uint64, port uint16, last time.Duration) datapath.PlaintextCount {
		return datapath.PlaintextCount{Cookie: cookie, Port: port, Count: 7, LastNanoseconds: ago(t, last),
			Peer: netip.MustParseAddr("10.0.0.9")}
	}
	return &node{
		counters: map[string]uint64{"strict_refused": 3, "strict_refused_no_mode": 1},
		seen: map[datapath.ConnectionKind]uint64{
			{Mode: policy.Strict, Outcome: "mtls"}: 4, {Mode: policy.Permissive, Outcome: "plaintext_accepted"}: 9, {Outcome: "pass_through"}: 2,
			{Mode: policy.Disable, Outcome: "probe_exempted"}: 0,
		},
		fills: []datapath.Fill{{Map: "modes", Entries: 5, Max: 65536}},
		plaintext: []datapath.PlaintextCount{peer(1, 9090, 0), peer(1, 9090, time.Minute), peer(1, 9090, plaintextWindow+time.Second),
			peer(2, 80, 0), peer(77, 80, 0)},
		svids: []identity.Status{
			{ID: id("cart"), Chain: [][]byte{{1}}, Obtained: time.Unix(1000, 0), Expires: time.Unix(2000, 0), Workloads: make([]identity.Workload, 1)},
			{ID: id("pay"), Workloads: make([]identity.Workload, 1), Err: errors.New("away")},
			{ID: id("idle")},
		},
		state: &State{
			Workloads: []Workload{
				{Cookie: 1, Namespace: "shop", Pod: "cart", Modes: policy.Modes{Default: policy.Strict, Ports: map[uint16]policy.Mode{9090: policy.Permissive}}},
				{Cookie: 2, Namespace: "lab", Pod: "tool"},
			},
			Namespaces:  map[string]policy.Mode{"shop": policy.Strict, "lab": policy.Permissive},
			NotEnrolled: 1, Sessions: 2, Rejected: map[string]int{"PeerAuthentication": 3},
		},
	}
}

func TestScrapeShowsTheNode(t *testing.T) {
	m := shop(t).metrics()
	m.Enrolled(20 * time.Millisecond)
	m.ModesWritten(time.Now().Add(-time.Millisecond))
	m.ModesWritten(time.Time{})
	m.Unreported(12)
	want(t, series(t, m), map[string]float64{
		"culvert_kernel_events_total{event=strict_refused}":                          3,
		"culvert_connections_total{mode=STRICT,outcome=mtls}":                        4,
		"culvert_connections_total{mode=PERMISSIVE,outcome=plaintext_accepted}":      9,
		"culvert_connections_total{mode=none,outcome=pass_through}":                  2,
		"culvert_connections_total{mode=DISABLE,outcome=probe_exempted}":             0,
		"culvert_map_entries{map=modes}":                                             5,
		"culvert_map_max_entries{map=modes}":                                         65536,
		"culvert_workload_mode{mode=STRICT,namespace=shop,pod=cart,port=default}":    1,
		"culvert_workload_mode{mode=PERMISSIVE,namespace=shop,pod=cart,port=9090}":   1,
		"culvert_workload_mode{mode=PERMISSIVE,namespace=lab,pod=tool,port=default}": 1,
		"culvert_namespace_mode{mode=STRICT,namespace=shop}":                         1,
		"culvert_plaintext_peers{mode=PERMISSIVE,namespace=shop,pod=cart,port=9090}": 2,
		"culvert_plaintext_peers{mode=PERMISSIVE,namespace=lab,pod=tool,port=80}":    1,
		"culvert_workloads":                                  2,
		"culvert_workloads_not_enrolled":                     1,
		"culvert_tunnel_sessions":                            2,
		"culvert_rejected_policies{kind=PeerAuthentication}": 3,
		"culvert_rejected_policies{kind=DestinationRule}":    0,
		"culvert_svid_obtained_timestamp_seconds{identity=spiffe://cluster.local/ns/shop/sa/cart}": 1000,
		"culvert_svid_expiry_timestamp_seconds{identity=spiffe://cluster.local/ns/shop/sa/cart}":   2000,
		"culvert_svids_missing":                   1,
		"culvert_enrolment_seconds":               1,
		"culvert_policy_propagation_seconds":      1,
		"culvert_refusals_unreported_total":       12,
		"culvert_scrape_errors_total{part=state}": 0,
	})
}

func TestLabelsOfWhatIsGoneDisappear(t *testing.T) {
	n := shop(t)
	m := n.metrics()
	series(t, m)
	n.state, n.svids = &State{}, nil
	for name := range series(t, m) {
		for _, gone := range []string{"pod=", "namespace=", "identity="} {
			if strings.Contains(name, gone) {
				t.Errorf("%s is still there", name)
			}
		}
	}
}

func TestKernelCountersGoOnInANewAgent(t *testing.T) {
	n := shop(t)
	const name = "culvert_connections_total{mode=PERMISSIVE,outcome=plaintext_accepted}"
	before := series(t, n.metrics())[name]
	n.seen[datapath.ConnectionKind{Mode: policy.Permissive, Outcome: "plaintext_accepted"}]++
	if after := series(t, n.metrics())[name]; after != before+1 {
		t.Errorf("%v after %v", after, before)
	}
}

func TestScrapeGoesOnWithoutWhatDoesNotAnswer(t *testing.T) {
	n := shop(t)
	n.hangs = true
	m := n.metrics()
	got := series(t, m)
	want(t, got, map[string]float64{"culvert_kernel_events_total{event=strict_refused}": 3, "culvert_svids_missing": 1})
	if _, ok := got["culvert_workloads"]; ok {
		t.Error("a loop that hangs tells of its workloads")
	}
	n.hangs, n.err = false, errors.New("gone")
	want(t, series(t, m), map[string]float64{
		"culvert_workloads":                       2,
		"culvert_scrape_errors_total{part=state}": 1, "culvert_scrape_errors_total{part=kernel_counters}": 1,
	})
}

func TestWholeMapsAreReadOnceForManyScrapes(t *testing.T) {
	n := shop(t)
	m := n.metrics()
	for range 20 {
		series(t, m)
	}
	if n.reads != 1 {
		t.Errorf("read %d times", n.reads)
	}
}

func TestAttemptsByOutcome(t *testing.T) {
	m := shop(t).metrics()
	for _, err := range []error{
		context.DeadlineExceeded, fmt.Errorf("ca: %w", status.Error(codes.DeadlineExceeded, "")),
		fmt.Errorf("ca: %w", status.Error(codes.Unavailable, "")), status.Error(codes.Unauthenticated, ""),
		status.Error(codes.PermissionDenied, ""), status.Error(codes.ResourceExhausted, ""), status.Error(codes.Internal, ""), errors.New("bad chain"),
	} {
		m.Attempted(identity.Attempt{Err: err})
	}
	m.Attempted(identity.Attempt{Took: time.Millisecond})
	m.Attempted(identity.Attempt{Took: time.Millisecond, Renewal: true})
	m.Attempted(identity.Attempt{Renewal: true})
	want(t, series(t, m), map[string]float64{
		"culvert_svid_failures_total{reason=timeout}": 2, "culvert_svid_failures_total{reason=unavailable}": 1,
		"culvert_svid_failures_total{reason=refused}": 2, "culvert_svid_failures_total{reason=overloaded}": 1,
		"culvert_svid_failures_total{reason=other}": 2, "culvert_svid_request_seconds": 2, "culvert_svid_renewals_total": 2,
	})
}

func TestBuildInfoNamesTheProcess(t *testing.T) {
	for name := range series(t, BuildInfo("agent", "v1.2.3")) {
		if !strings.Contains(name, "process=agent") || !strings.Contains(name, "version=v1.2.3") || !strings.Contains(name, "goversion=go1") {
			t.Error(name)
		}
	}
}

// busy is a node with 250 pods of four ports, each with 100 peers: more than the kernel's map holds.
func busy(t testing.TB) *node {
	n := shop(t)
	n.state, n.svids, n.plaintext = &State{Namespaces: map[string]policy.Mode{}}, nil, nil
	for pod := range 250 {
		name := fmt.Sprintf("application-%d-7d9f8b6c5d-x2x4z", pod)
		w := Workload{Cookie: uint64(pod), Namespace: fmt.Sprint("namespace-", pod%20), Pod: name, Modes: policy.Modes{Default: policy.Strict,
			Ports: map[uint16]policy.Mode{8080: policy.Permissive, 8081: policy.Disable, 9090: policy.Permissive}}}
		n.state.Workloads = append(n.state.Workloads, w)
		n.state.Namespaces[w.Namespace] = policy.Strict
		n.svids = append(n.svids, identity.Status{ID: id(fmt.Sprint("account-", pod)), Chain: [][]byte{{1}}})
		for peer := range 65 {
			n.plaintext = append(n.plaintext, datapath.PlaintextCount{Cookie: w.Cookie, Port: 8080, LastNanoseconds: ago(t, 0),
				Peer: netip.AddrFrom4([4]byte{10, byte(pod), 0, byte(peer)})})
		}
	}
	return n
}

func BenchmarkScrape(b *testing.B) {
	r := prometheus.NewRegistry()
	r.MustRegister(busy(b).metrics())
	h := promhttp.HandlerFor(r, promhttp.HandlerOpts{})
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		b.ReportMetric(float64(w.Body.Len()), "body-bytes")
	}
}
