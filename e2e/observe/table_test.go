package observe

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/agent/datapath"
	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/server"
	"github.com/culvert-mesh/culvert/agent/source/kube"
	agentmetrics "github.com/culvert-mesh/culvert/agent/telemetry"
	"github.com/culvert-mesh/culvert/policy"
	tunnelmetrics "github.com/culvert-mesh/culvert/tunnel/telemetry"
)

const root = "../.."

// metric is one as people read of it. labels are sorted and joined.
type metric struct{ process, kind, labels string }

// documented reads the table in the README.
func documented(t *testing.T) map[string]metric {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]metric{}
	labels := "" // of the row before
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.ReplaceAll(strings.TrimSpace(cells[i]), "`", "")
		}
		name := cells[0]
		if !strings.HasPrefix(line, "| `culvert_") && !strings.HasPrefix(line, "| `istio_") {
			continue
		}
		if len(cells) != 6 || cells[4] == "" || cells[5] == "" {
			t.Errorf("README: %s: want name, process, type, labels, unit and meaning", name)
			continue
		}
		if _, twice := all[name]; twice {
			t.Errorf("README: %s is there twice", name)
		}
		if cells[3] != "the same" {
			labels = sorted(strings.Split(cells[3], ","))
		}
		all[name] = metric{cells[1], cells[2], labels}
	}
	return all
}

func sorted(labels []string) string {
	var all []string
	for _, l := range labels {
		if l = strings.TrimSpace(l); l != "" {
			all = append(all, l)
		}
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// filled is a node that has one of everything.
type filled struct{}

func (filled) Counters() (map[string]uint64, error) {
	return map[string]uint64{"strict_refused": 1}, nil
}
func (filled) Connections() (map[datapath.ConnectionKind]uint64, error) {
	return map[datapath.ConnectionKind]uint64{{Mode: policy.Strict, Outcome: "mtls"}: 1}, nil
}
func (filled) Fill() ([]datapath.Fill, error) { return []datapath.Fill{{Map: "modes", Max: 1}}, nil }
func (filled) Plaintext() ([]datapath.PlaintextCount, error) {
	var now unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return []datapath.PlaintextCount{{Port: 80, Peer: netip.MustParseAddr("10.0.0.1"), Count: 1, LastNanoseconds: uint64(now.Nano())}}, err
}

func (filled) state(context.Context) (*agentmetrics.State, error) {
	return &agentmetrics.State{
		Workloads: []agentmetrics.Workload{{Namespace: "n", Pod: "p"}}, Namespaces: map[string]policy.Mode{"n": policy.Strict},
	}, nil
}

func (filled) svids() []identity.Status {
	return []identity.Status{{ID: spiffeid.RequireFromString("spiffe://d/ns/n/sa/p"), Chain: [][]byte{{0}}, Expires: time.Now()}}
}

// exposed asks the registries of the three processes.
func exposed(t *testing.T) map[string]metric {
	t.Helper()
	kubeconfig := filepath.Join(t.TempDir(), "config")
	const text = `{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c"}}],
		"clusters":[{"name":"c","cluster":{"server":"http://127.0.0.1:1"}}]}`
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := kube.Config(kubeconfig, "test")
	if err != nil {
		t.Fatal(err)
	}
	agent := prometheus.NewRegistry()
	agent.MustRegister(agentmetrics.New(agentmetrics.Sources{Kernel: filled{}, SVIDs: filled{}.svids, State: filled{}.state}),
		agentmetrics.BuildInfo("agent", "v0"))
	if _, err := kube.New(kube.Options{Config: config, Node: "n", Registerer: agent}); err != nil {
		t.Fatal(err)
	}
	of := tunnelmetrics.New()
	tunnel := prometheus.NewRegistry()
	tunnel.MustRegister(of, agentmetrics.BuildInfo("tunnel", "v0"))
	of.Traffic.Open(tunnelmetrics.Labels{Reporter: tunnelmetrics.ReporterSource, Flags: tunnelmetrics.FlagsNone})
	of.Traffic.Fail(tunnelmetrics.Labels{Reporter: tunnelmetrics.ReporterSource, Flags: tunnelmetrics.FlagsDenied})
	var traffic bytes.Buffer
	if err := of.Traffic.WriteText(&traffic); err != nil {
		t.Fatal(err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(&traffic)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := ca.New(spiffeid.RequireTrustDomainFromString("cluster.local"))
	if err != nil {
		t.Fatal(err)
	}
	authorities := server.Registry(authority)
	authorities.MustRegister(agentmetrics.BuildInfo("ca", "v0"))

	all := map[string]metric{}
	for _, f := range families {
		add(all, "tunnel", f)
	}
	for process, r := range map[string]*prometheus.Registry{"agent": agent, "tunnel": tunnel, "ca": authorities} {
		described(t, all, process, r)
	}
	return all
}

// described adds what a registry would show, with or without a sample.
func described(t *testing.T, all map[string]metric, process string, r *prometheus.Registry) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		add(all, process, f)
	}
	parts := regexp.MustCompile(`fqName: "(.*?)".*variableLabels: \{(.*?)\}`)
	descriptions := make(chan *prometheus.Desc)
	go func() {
		r.Describe(descriptions)
		close(descriptions)
	}()
	for d := range descriptions {
		match := parts.FindStringSubmatch(d.String())
		if _, seen := all[match[1]]; !seen {
			kind := "gauge"
			if strings.HasSuffix(match[1], "_total") {
				kind = "counter"
			}
			all[match[1]] = metric{process, kind, sorted(strings.Split(match[2], ","))}
		}
	}
}

func add(all map[string]metric, process string, f *dto.MetricFamily) {
	if was, other := all[f.GetName()]; other {
		processes := append(strings.Split(was.process, ", "), process)
		slices.Sort(processes)
		was.process = strings.Join(processes, ", ")
		all[f.GetName()] = was
		return
	}
	m := metric{process: process, kind: strings.ToLower(f.GetType().String())}
	if len(f.Metric) > 0 {
		var labels []string
		for _, l := range f.Metric[0].Label {
			labels = append(labels, l.GetName())
		}
		m.labels = sorted(labels)
	}
	all[f.GetName()] = m
}

func TestTableOfMetricsIsWhatTheProcessesExpose(t *testing.T) {
	told, real := documented(t), exposed(t)
	// Made by the command, which nothing imports; the test with the real Prometheus sees it.
	real["culvert_log_lines_dropped_total"] = metric{"agent, tunnel", "counter", ""}
	for name, m := range real {
		switch got, ok := told[name]; {
		case !ok:
			t.Errorf("README lacks %s: %+v", name, m)
		case got != m:
			t.Errorf("README has %s as %+v, it is %+v", name, got, m)
		}
	}
	for name := range told {
		if _, ok := real[name]; !ok {
			t.Errorf("README has %s, which no process exposes", name)
		}
	}
}

func TestDashboardsAndRulesAskForMetricsThatExist(t *testing.T) {
	told := documented(t)
	asked := regexp.MustCompile(`\b(?:culvert|istio)_[a-z0-9_]+`)
	files, err := filepath.Glob(filepath.Join(root, "daemonset/dashboards/*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no dashboards: %v", err)
	}
	for _, path := range append(files, filepath.Join(root, "daemonset/rules/culvert.yaml")) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range asked.FindAllString(string(text), -1) {
			plain := name
			for _, suffix := range []string{"_bucket", "_count", "_sum"} {
				plain = strings.TrimSuffix(plain, suffix)
			}
			if _, ok := told[plain]; !ok {
				t.Errorf("%s asks for %s", path, name)
			}
		}
	}
}
