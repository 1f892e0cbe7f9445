package tunnel

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/tunnel/control"
	"github.com/culvert-mesh/culvert/tunnel/hbone"
	"github.com/culvert-mesh/culvert/tunnel/telemetry"
)

// flows returns what the agent was told of connections.
func (n *node) flows() (all []*control.Flow) {
	for _, m := range n.heard() {
		all = append(all, m.GetFlows().GetFlows()...)
	}
	return all
}

// traffic returns the lines of the traffic that hold all of words.
func (n *node) traffic(words ...string) (found []string) {
	n.t.Helper()
	var b bytes.Buffer
	must(n.t, n.tunnel.Metrics.Traffic.WriteText(&b))
lines:
	for line := range strings.Lines(b.String()) {
		for _, word := range words {
			if !strings.Contains(line, word) {
				continue lines
			}
		}
		found = append(found, line)
	}
	return found
}

func (n *node) counts(value string, words ...string) bool {
	found := n.traffic(words...)
	return len(found) == 1 && strings.HasSuffix(found[0], "} "+value+"\n")
}

// TestTold: what agent and metrics are told of a connection, for each way that it may go.
func TestTold(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	till, bank := `source_principal="`+ca.id("client")+`"`, `destination_principal="`+ca.id("server")+`"`
	tests := []struct {
		name    string
		prepare func(t *testing.T, client, server *node, app string) (outbound string)
		flow    *control.Flow // of the client's, the fields that are compared
		client  [][]string    // words of lines that count 1, ends with the value if another
		server  [][]string
	}{
		{"mtls", func(t *testing.T, c, s *node, app string) string {
			return wire(t, ca, ca, c, s, app, "server", later())
		},
			&control.Flow{Carried: control.Carried_CARRIED_MTLS, Sent: 5, Received: 5, SourceIdentity: ca.id("client"), DestinationIdentity: ca.id("server")},
			[][]string{{"opened", `reporter="source"`, till, bank, `"mutual_tls"`, `flags="-"`}, {"closed", till, bank}},
			[][]string{{"opened", `reporter="destination"`, till, bank, `"mutual_tls"`}, {"closed", till, bank}}},
		{"same node", func(t *testing.T, c, s *node, app string) string { return same(t, ca, c, app, "server", later()) },
			&control.Flow{Carried: control.Carried_CARRIED_SAME_NODE, Sent: 5, Received: 5, SourceIdentity: ca.id("client"), DestinationIdentity: ca.id("server")},
			[][]string{{"opened", `reporter="source"`, till, bank, `"none"`}, {"opened", `reporter="destination"`, till, bank, `"none"`}}, nil},
		{"direct", func(t *testing.T, c, s *node, app string) string {
			out := c.pod(1, "127.77.1.1", ca.id("client"))
			c.destination(out, endpointTo(app, control.Action_ACTION_DIRECT, "", 0))
			return out
		}, &control.Flow{Carried: control.Carried_CARRIED_PLAINTEXT, Sent: 5, Received: 5, SourceIdentity: ca.id("client")},
			[][]string{{"opened", till, `destination_principal="unknown"`, `"none"`}}, nil},
		{"refuse", func(t *testing.T, c, s *node, app string) string {
			out := c.pod(1, "127.77.1.1", ca.id("client"))
			c.destination(out, endpointTo(app, control.Action_ACTION_REFUSE, "", 0))
			return out
		}, &control.Flow{Carried: control.Carried_CARRIED_REFUSED, SourceIdentity: ca.id("client"), Reason: "for the test"},
			[][]string{{"failed", till, `"DENY"`}}, nil},
		{"no endpoint", func(t *testing.T, c, s *node, app string) string {
			out := c.pod(1, "127.77.1.1", ca.id("client"))
			c.destination(out)
			return out
		}, &control.Flow{Carried: control.Carried_CARRIED_FAILED, SourceIdentity: ca.id("client"), Reason: "for the test"},
			[][]string{{"failed", till, `"UH"`}}, nil},
		{"disable", func(t *testing.T, c, s *node, app string) string {
			return wire(t, ca, ca, c, s, app, "server", later(),
				&control.PortMode{Port: uint32(portOf(app)), Mode: control.Mode_MODE_DISABLE, Policy: "default/off"})
		}, &control.Flow{Carried: control.Carried_CARRIED_REFUSED, SourceIdentity: ca.id("client"), DestinationIdentity: ca.id("server"), Reason: "401"},
			[][]string{{"failed", till, bank, `"DENY"`}}, [][]string{{"failed", till, bank, `"DENY"`, `"destination"`}}},
		{"application refuses", func(t *testing.T, c, s *node, app string) string {
			return wire(t, ca, ca, c, s, "127.77.2.1:9", "server", later())
		}, &control.Flow{Carried: control.Carried_CARRIED_FAILED, SourceIdentity: ca.id("client"), DestinationIdentity: ca.id("server"), Reason: "503"},
			[][]string{{"failed", till, bank, `"CONNECT"`}}, [][]string{{"failed", till, bank, `"CONNECT"`}}},
		{"wrong identity", func(t *testing.T, c, s *node, app string) string { return wire(t, ca, ca, c, s, app, "other", later()) },
			&control.Flow{Carried: control.Carried_CARRIED_FAILED, SourceIdentity: ca.id("client"), DestinationIdentity: ca.id("other"), Reason: "want"},
			[][]string{{"failed", till, `"CONNECT"`}}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			app := application(t, "127.77.2.1")
			client, server := newNode(t, ca), newNode(t, ca)
			out := test.prepare(t, client, server, app)
			server.start()
			client.start()
			_, _ = call(out, "hello")
			client.eventually("the flow", func() bool { return len(client.flows()) > 0 })
			got, want := client.flows()[0], test.flow
			if got.GetOpen() || got.GetInbound() || got.GetWorkload() != 1 || got.GetCarried() != want.GetCarried() ||
				got.GetSent() != want.GetSent() || got.GetReceived() != want.GetReceived() ||
				got.GetSourceIdentity() != want.GetSourceIdentity() || got.GetDestinationIdentity() != want.GetDestinationIdentity() ||
				!strings.Contains(got.GetReason(), want.GetReason()) || got.GetSourceWorkload() != "default/pod-1" ||
				got.GetDestinationPort() == 0 || got.GetOpenedUnixNanoseconds() == 0 || got.GetClosedUnixNanoseconds() < got.GetOpenedUnixNanoseconds() {
				t.Errorf("got %v\nwant %v", got, want)
			}
			for _, words := range test.client {
				client.eventually(strings.Join(words, " "), func() bool { return client.counts("1", words...) })
			}
			for _, words := range test.server {
				server.eventually(strings.Join(words, " "), func() bool { return server.counts("1", words...) })
			}
			if test.flow.GetSent() > 0 {
				client.eventually("bytes", func() bool {
					return client.counts("5", "istio_tcp_sent_bytes", `"source"`, till) && client.counts("5", "istio_tcp_received_bytes", `"source"`, till)
				})
			}
		})
	}
}

// TestToldWhileOpen: of a connection that lasts agent and metrics hear before its end, and of none of its bytes twice.
func TestToldWhileOpen(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	for _, kind := range []string{"mtls", "same node"} {
		t.Run(kind, func(t *testing.T) {
			app := application(t, "127.77.2.1")
			client, server := newNode(t, ca), newNode(t, ca)
			var out string
			if kind == "mtls" {
				out = wire(t, ca, ca, client, server, app, "server", later())
			} else {
				out = same(t, ca, client, app, "server", later())
			}
			server.start()
			client.start()
			c, err := net.Dial("tcp4", out)
			must(t, err)
			defer func() { _ = c.Close() }()
			pingPong(t, c)
			client.eventually("the flow that is open", func() bool { return len(client.flows()) == 1 })
			opened := client.flows()[0]
			if !opened.GetOpen() || opened.GetSent() != 4 || opened.GetReceived() != 4 || opened.GetClosedUnixNanoseconds() != 0 {
				t.Errorf("told of %v", opened)
			}
			bytes := func(value string) bool {
				return client.counts(value, "istio_tcp_sent_bytes", `"source"`) && client.counts(value, "istio_tcp_received_bytes", `"source"`)
			}
			client.eventually("bytes of an open connection", func() bool { return bytes("4") })
			if len(client.traffic("connections_closed", "} 0")) == 0 {
				t.Error("counted as closed")
			}
			pingPong(t, c)
			must(t, c.(*net.TCPConn).CloseWrite())
			_, err = io.ReadAll(c)
			must(t, err)
			client.eventually("the flow that has ended", func() bool { return len(client.flows()) == 2 })
			if ended := client.flows()[1]; ended.GetOpen() || ended.GetNumber() != opened.GetNumber() || ended.GetSent() != 8 {
				t.Errorf("told of %v", ended)
			}
			client.eventually("all bytes", func() bool { return bytes("8") })
		})
	}
}

// TestGauges: what there is while a connection is open.
func TestGauges(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	app := application(t, "127.77.2.1")
	client, server := newNode(t, ca), newNode(t, ca)
	out := wire(t, ca, ca, client, server, app, "server", later())
	server.start()
	client.start()
	c, err := net.Dial("tcp4", out)
	must(t, err)
	defer func() { _ = c.Close() }()
	pingPong(t, c)
	client.eventually("gauges", func() bool {
		g := client.tunnel.gauges()
		return g.PoolConnections == 1 && g.PoolStreams == 1 && g.SVIDs == 1 && g.ReserveSockets > 0 && g.AgentConnected
	})
	client.agent.stop()
	client.eventually("the agent's end", func() bool { return !client.tunnel.gauges().AgentConnected })
}

// bare returns a record without a network, and what is logged of it.
func bare(access *AccessLog) (*record, *syncBuffer) {
	logs := &syncBuffer{}
	t := &tunnel{Options: Options{AccessLog: access, Metrics: telemetry.New()}, ids: newIdentities(), log: slog.New(slog.NewTextHandler(logs, nil))}
	t.flows = newFlows(&t.Metrics.FlowsLost)
	return &record{
		tunnel: t, workload: &workload{id: 1}, direction: directionInbound, carried: carriedMTLS, mode: "STRICT", policy: "shop/strict", start: time.Now(),
		source:      party{identity: "spiffe://cluster.local/ns/shop/sa/till", address: netip.MustParseAddrPort("10.0.0.1:4711")},
		destination: party{workload: "shop/bank-7", identity: "spiffe://cluster.local/ns/shop/sa/bank", address: netip.MustParseAddrPort("10.0.0.2:80")},
	}, logs
}

func TestAccessLogFields(t *testing.T) {
	r, logs := bare(nil)
	r.open(func() hbone.Stats { return hbone.Stats{} })
	r.complete(hbone.Stats{Sent: 5, Received: 7}, errors.New("broken"))
	got := regexp.MustCompile(`^time=\S+ level=INFO |duration=\S+ |\n`).ReplaceAllString(logs.String(), "")
	want := `msg="connection complete" direction=inbound source.workload="" source.identity=spiffe://cluster.local/ns/shop/sa/till ` +
		`source.addr=10.0.0.1:4711 destination.workload=shop/bank-7 destination.identity=spiffe://cluster.local/ns/shop/sa/bank ` +
		`destination.addr=10.0.0.2:80 carried=mtls policy=shop/strict sent=5 received=7 bytes_sent=7 bytes_recv=5 response_flags=- ` +
		`src.addr=10.0.0.1:4711 src.identity=spiffe://cluster.local/ns/shop/sa/till dst.workload=bank-7 dst.namespace=shop ` +
		`dst.identity=spiffe://cluster.local/ns/shop/sa/bank dst.hbone_addr=10.0.0.2:80 dst.addr=10.0.0.2:15008 mode=STRICT error=broken reason=broken`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestAccessLogSampling: what ended well is sampled; what did not is limited, and the next line says how much is missing.
func TestAccessLogSampling(t *testing.T) {
	r, logs := bare(&AccessLog{Sample: 0})
	again := func(err error) {
		one := &record{tunnel: r.tunnel, workload: r.workload, direction: r.direction, start: time.Now()}
		one.complete(hbone.Stats{}, err)
	}
	for range 100 {
		again(nil)
	}
	if logs.String() != "" {
		t.Errorf("logged although the sample is empty: %s", logs)
	}
	for range 3 * noisePerSecond {
		again(errors.New("broken"))
	}
	if n := strings.Count(logs.String(), "connection complete"); n < noisePerSecond || n > 2*noisePerSecond {
		t.Errorf("%d lines", n)
	}
	r.workload.noise.kinds["connection complete"].second = 0
	again(errors.New("broken"))
	if !strings.Contains(logs.String(), "suppressed=") {
		t.Error("what was left out is not told")
	}
}

// TestEndOfAFloodIsTold: also when no line comes after it.
func TestEndOfAFloodIsTold(t *testing.T) {
	r, logs := bare(nil)
	r.workload.spec.Store(&spec{name: "shop/till"})
	r.tunnel.workloads = map[uint64]*workload{1: r.workload}
	start := time.Now()
	for range noisePerSecond + 7 {
		r.workload.noise.allow("connection refused", start)
	}
	r.tunnel.tellLeftOut(start)
	if logs.String() != "" {
		t.Errorf("told while it lasts: %s", logs)
	}
	for range 2 { // the second time there is nothing left
		r.tunnel.tellLeftOut(start.Add(time.Minute))
	}
	if got := strings.Count(logs.String(), `msg="log lines left out" workload=shop/till like="connection refused" suppressed=7`); got != 1 {
		t.Errorf("told %d times: %s", got, logs)
	}
}

// TestFloodHidesNoOther: the lines of one workload are not left out for those of another one.
func TestFloodHidesNoOther(t *testing.T) {
	r, logs := bare(nil)
	other, _ := bare(nil)
	for range 5 * noisePerSecond {
		one := &record{tunnel: r.tunnel, workload: r.workload, direction: directionInbound, start: time.Now()}
		one.turnedAway(slog.LevelWarn, connectRefused, "DENY", "flood")
	}
	one := &record{tunnel: r.tunnel, workload: other.workload, direction: directionInbound, start: time.Now(), policy: "shop/strict", mode: "DISABLE"}
	one.turnedAway(slog.LevelWarn, connectRefused, "DENY", "the other", slog.Int("status", 401))
	for _, want := range []string{`reason="the other"`, "response_flags=DENY", "policy=shop/strict", "mode=DISABLE", "status=401", "direction=inbound"} {
		if !strings.Contains(logs.String(), want) {
			t.Errorf("no %s in the log", want)
		}
	}
}

// BenchmarkRecord is all that is written down of one connection.
func BenchmarkRecord(b *testing.B) {
	r, _ := bare(&AccessLog{Sample: 0})
	b.ReportAllocs()
	for b.Loop() {
		one := &record{tunnel: r.tunnel, workload: r.workload, direction: r.direction, carried: r.carried, source: r.source, destination: r.destination, start: time.Now()}
		one.open(func() hbone.Stats { return hbone.Stats{} })
		one.complete(hbone.Stats{Sent: 5, Received: 7}, nil)
	}
}
