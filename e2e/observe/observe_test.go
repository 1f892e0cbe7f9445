package observe

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/server"
	agentmetrics "github.com/culvert-mesh/culvert/agent/telemetry"
	"github.com/culvert-mesh/culvert/e2e/demo"
)

const (
	nginx       = "test/nginx"
	legacyApp   = "test/legacy-app"
	productpage = "default/productpage"
	reviews     = "default/reviews"

	// watched is how long the mesh is looked at.
	watched = 30 * time.Second
)

// empty are the panels that rightly show nothing here, with the reason.
func empty() map[string]string {
	const idle = "nobody asks the CA of this test for anything"
	return map[string]string{
		"Time to answer a request":                 idle,
		"Time of the API server to review a token": idle,
		"Namespaces with the roots":                idle,
	}
}

// quiet are the alerts that may be pending: they fire when it lasts.
func quiet() map[string]string {
	return map[string]string{
		"CulvertPlaintextOnStrictPort": "a port turned STRICT less than five minutes ago",
	}
}

func TestDashboardsAndAlertsOnTheDemoUnderLoad(t *testing.T) {
	m, dir := startMesh(t)
	all := append(targets(t, dir), authority(t))
	p := startPrometheus(t, all)
	begin := time.Now()
	stop := load(t, m)
	change(t, m)
	time.Sleep(time.Until(begin.Add(watched)))
	for _, b := range boards(t) {
		t.Run(b.Title, func(t *testing.T) { b.check(t, p, begin) })
	}
	t.Run("labels of Istio", func(t *testing.T) { checkIstioLabels(t, p) })
	t.Run("table of metrics", func(t *testing.T) { checkNames(t, p) })
	t.Run("healthy", func(t *testing.T) {
		now, err := p.alerts()
		if err != nil {
			t.Fatal(err)
		}
		for name, state := range now {
			if why, ok := quiet()[name]; state == "firing" || !ok {
				t.Errorf("%s is %s (%s)", name, state, why)
			}
		}
	})
	stop()
	t.Run("kernel and tunnels agree", func(t *testing.T) { checkCounts(t, p) })
	t.Run("without tunnels", func(t *testing.T) {
		m.Kill("tunnel")
		want := []string{"CulvertAgentWithoutTunnel", "CulvertTunnelNotScraped"}
		waitFor(t, strings.Join(want, " and "), 20*time.Second, func() bool {
			now, err := p.alerts()
			return err == nil && !slices.ContainsFunc(want, func(name string) bool { return now[name] == "" })
		})
	})
}

// authority stands for the CA, which the demo does not run: it shows what one does that has just started.
func authority(t *testing.T) target {
	t.Helper()
	a, err := ca.New(spiffeid.RequireTrustDomainFromString("cluster.local"))
	if err != nil {
		t.Fatal(err)
	}
	r := server.Registry(a)
	r.MustRegister(agentmetrics.BuildInfo("ca", "test"))
	s := httptest.NewServer(promhttp.HandlerFor(r, promhttp.HandlerOpts{}))
	t.Cleanup(s.Close)
	return target{job: "culvert-ca", address: strings.TrimPrefix(s.URL, "http://")}
}

// load has pods make requests until the returned function is called: with mTLS, on one node, in plaintext, to where nobody
// listens, and to what the mesh does not know.
func load(t *testing.T, m *demo.Mesh) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, one := range []struct {
		from  string
		to    netip.AddrPort
		pause time.Duration
	}{
		{nginx, m.ServiceAddr(productpage, 4, 9080), 200 * time.Millisecond},
		{nginx, m.ServiceAddr(productpage, 6, 9080), 500 * time.Millisecond},
		{productpage, m.ServiceAddr(reviews, 4, 9080), 500 * time.Millisecond},
		{productpage, m.PodAddr(nginx, 4, 9090), 500 * time.Millisecond},
		{legacyApp, m.PodAddr(productpage, 4, 9080), 3 * time.Second},
		{nginx, m.PodAddr(productpage, 4, 9999), time.Second},
		{nginx, netip.MustParseAddrPort("192.0.2.1:80"), time.Second}, // the nodes have no route to there
	} {
		running.Go(func() {
			for ctx.Err() == nil {
				m.Request(ctx, one.from, one.to, "load")
				select {
				case <-ctx.Done():
				case <-time.After(one.pause):
				}
			}
		})
	}
	stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(stop)
	return stop
}

// change makes a policy STRICT, and enrols one pod more.
func change(t *testing.T, m *demo.Mesh) {
	t.Helper()
	time.Sleep(watched / 3)
	if err := m.Apply(t.Context(), "default-strict"); err != nil {
		t.Fatal(err)
	}
	cluster, err := m.ReadManifest("cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	const plain, enrolled = "\n  name: audit\n", "\n  name: audit\n  labels:\n    istio.io/dataplane-mode: ambient\n"
	if bytes.Count(cluster, []byte(plain)) != 1 {
		t.Fatal("the demo's manifests have no namespace audit any more")
	}
	if err := m.WriteManifest("cluster.yaml", bytes.Replace(cluster, []byte(plain), []byte(enrolled), 1)); err != nil {
		t.Fatal(err)
	}
}

// board is a dashboard as Grafana reads it.
type board struct {
	Title  string
	Panels []panel
}

type panel struct {
	Type, Title string
	FieldConfig struct{ Defaults struct{ Unit string } }
	Targets     []struct{ Expr string }
}

func boards(t *testing.T) []board {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, "daemonset/dashboards/*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no dashboards: %v", err)
	}
	var all []board
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var b board
		if err := json.Unmarshal(text, &b); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		all = append(all, b)
	}
	return all
}

// check evaluates every query as Grafana would with everything chosen.
func (b board) check(t *testing.T, p *realPrometheus, begin time.Time) {
	choice := strings.NewReplacer("$node", ".*", "$namespace", ".*", "$__rate_interval", "10s", "$__range", "30s")
	for _, panel := range b.Panels {
		for _, query := range panel.Targets {
			expr := choice.Replace(query.Expr)
			found, err := p.queryRange(expr, begin)
			if panel.Type != "timeseries" {
				found, err = p.query(expr)
			}
			if err != nil {
				t.Errorf("%s: %s: %v", panel.Title, expr, err)
				continue
			}
			why, none := empty()[panel.Title]
			if none != (len(found) == 0) {
				t.Errorf("%s: %d series for %s (%s)", panel.Title, len(found), expr, why)
			}
			for _, s := range found {
				if low, high := limits(panel); slices.Min(s.values) < low || slices.Max(s.values) > high {
					t.Errorf("%s: %v is from %g to %g, want %g to %g of %s", panel.Title, s.labels,
						slices.Min(s.values), slices.Max(s.values), low, high, panel.FieldConfig.Defaults.Unit)
				}
			}
			t.Log(summary(panel, found))
		}
	}
}

// limits are what a value may be on this mesh of two nodes and a few requests a second.
func limits(p panel) (low, high float64) {
	switch unit := p.FieldConfig.Defaults.Unit; unit {
	case "percentunit":
		if p.Title == "Processor" {
			return 0, float64(runtime.NumCPU())
		}
		return 0, 1
	case "s":
		if strings.Contains(p.Title, "ife left") {
			return 0, 20 * 365 * 86400
		}
		return 0, 10
	case "cps":
		return 0, 1000
	case "bytes":
		return 0, 1 << 30
	case "Bps":
		return 0, 1 << 20
	default:
		return 0, 1000
	}
}

func summary(p panel, found []series) string {
	lines := []string{p.Title + " (" + p.FieldConfig.Defaults.Unit + ")"}
	for _, s := range found[:min(len(found), 6)] {
		var labels []string
		for _, name := range slices.Sorted(maps.Keys(s.labels)) {
			labels = append(labels, name+"="+s.labels[name])
		}
		text, _ := json.Marshal([]float64{slices.Min(s.values), slices.Max(s.values)})
		lines = append(lines, "  "+strings.Join(labels, " ")+" "+string(text))
	}
	return strings.Join(lines, "\n")
}

// checkCounts compares what the kernels have counted with what the tunnels say that they delivered.
func checkCounts(t *testing.T, p *realPrometheus) {
	sum := func(expr string) float64 {
		found, err := p.query("sum(" + expr + ")")
		if err != nil || len(found) != 1 {
			return -1
		}
		return found[0].values[0]
	}
	for outcome, carried := range map[string]string{
		"mtls": `direction="inbound", carried="mtls"`, "same_node": `direction="outbound", carried="same_node"`,
	} {
		waitFor(t, "as many connections in kernels and tunnels: "+outcome, 10*time.Second, func() bool {
			kernel := sum(`culvert_connections_total{outcome="` + outcome + `"}`)
			return kernel > 0 && kernel == sum(`culvert_tunnel_connections_total{outcome="established", `+carried+`}`)
		})
	}
	for _, labels := range []string{`mode="PERMISSIVE", outcome="plaintext_accepted"`, `mode="STRICT", outcome="plaintext_refused"`, `mode="none", outcome="pass_through"`} {
		if n := sum("culvert_connections_total{" + labels + "}"); n <= 0 {
			t.Errorf("%s: %g connections", labels, n)
		}
	}
}

// checkNames compares the README with what was scraped of real processes.
func checkNames(t *testing.T, p *realPrometheus) {
	told := documented(t)
	for _, process := range []string{"agent", "tunnel"} {
		scraped, err := p.names("culvert-" + process)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for _, name := range scraped {
			if !strings.HasPrefix(name, "culvert_") && !strings.HasPrefix(name, "istio_") {
				continue
			}
			for _, suffix := range []string{"_bucket", "_count", "_sum"} {
				name = strings.TrimSuffix(name, suffix)
			}
			seen[name] = true
			if m, ok := told[name]; !ok || !strings.Contains(m.process, process) {
				t.Errorf("the %s shows %s; README: %+v", process, name, m)
			}
		}
		for name, m := range told {
			// Those of the source are of the one that reads from Kubernetes.
			if strings.Contains(m.process, process) && !seen[name] && !strings.HasPrefix(name, "culvert_source_") {
				t.Errorf("README has %s, which the %s does not show", name, process)
			}
		}
	}
}
