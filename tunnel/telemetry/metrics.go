// Package telemetry counts what a tunnel does, for Prometheus.
//
// Traffic is apart from the rest: it has tens of thousands of label sets, and the client library takes seconds and a
// hundred megabytes for what is written here in milliseconds.
package telemetry

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Values of the label outcome.
const (
	Established = "established"
	Refused     = "refused" // by policy
	Failed      = "failed"
)

// Gauges are what a tunnel has at one moment.
type Gauges struct {
	PoolConnections, PoolStreams int
	BufferedBytes                int64
	ReserveSockets               int
	SVIDs, ExpiredSVIDs          int64
	RefusedExpired               uint64
	AgentConnected               bool
}

// Metrics are those of one tunnel. It is a prometheus.Collector of everything but the traffic, and serves both.
type Metrics struct {
	Traffic      Traffic
	WindowStalls atomic.Uint64
	FlowsLost    atomic.Uint64
	// DestinationMissing are connections of which nobody knew where they wanted to go.
	DestinationMissing atomic.Uint64

	connections       *prometheus.CounterVec
	handshakes        *prometheus.HistogramVec
	handshakeFailures *prometheus.CounterVec
	parts             []prometheus.Collector
	moments           []moment
	now               atomic.Pointer[func() Gauges]
}

// moment is a metric that is made of Gauges.
type moment struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(Gauges) float64
}

// New returns metrics of which every one is zero.
func New() *Metrics {
	m := &Metrics{
		connections: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "culvert_tunnel_connections_total",
			Help: "Connections of applications by direction, how they are carried (mtls, same_node, plaintext, none) and outcome (established, refused, failed)."},
			[]string{"direction", "carried", "outcome"}),
		handshakes: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "culvert_tunnel_handshake_seconds",
			Help: "Duration of TLS handshakes that succeeded.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14)}, []string{"direction"}),
		handshakeFailures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "culvert_tunnel_handshake_failures_total",
			Help: "TLS handshakes that failed, by direction and reason."}, []string{"direction", "reason"}),
	}
	m.parts = []prometheus.Collector{m.connections, m.handshakes, m.handshakeFailures,
		counter("culvert_tunnel_window_stalls_total", "How often a stream had to wait because its peer's window was used up.", &m.WindowStalls),
		counter("culvert_tunnel_flows_lost_total", "Flows that were not reported to the agent because it reads too slowly.", &m.FlowsLost),
		counter("culvert_tunnel_destination_missing_total", "Connections reset because the kernel did not know where they wanted to go.", &m.DestinationMissing),
	}
	m.moments = []moment{
		gauge("culvert_tunnel_pool_connections", "HBONE connections to other tunnels.", func(g Gauges) float64 { return float64(g.PoolConnections) }),
		gauge("culvert_tunnel_pool_streams", "Streams on the HBONE connections to other tunnels.", func(g Gauges) float64 { return float64(g.PoolStreams) }),
		gauge("culvert_tunnel_buffered_bytes", "Bytes held for applications that do not read.", func(g Gauges) float64 { return float64(g.BufferedBytes) }),
		gauge("culvert_tunnel_reserve_sockets", "Sockets that the agent has made ahead of need.", func(g Gauges) float64 { return float64(g.ReserveSockets) }),
		gauge("culvert_tunnel_svids", "SVIDs held.", func(g Gauges) float64 { return float64(g.SVIDs) }),
		gauge("culvert_tunnel_svids_expired", "SVIDs that have expired and that a workload needs.", func(g Gauges) float64 { return float64(g.ExpiredSVIDs) }),
		gauge("culvert_tunnel_agent_connected", "Whether the agent is connected.", func(g Gauges) float64 {
			if g.AgentConnected {
				return 1
			}
			return 0
		}),
		{desc("culvert_tunnel_refused_expired_total", "Connections refused because the workload's own SVID had expired."),
			prometheus.CounterValue, func(g Gauges) float64 { return float64(g.RefusedExpired) }},
	}
	m.zero()
	return m
}

func desc(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, nil, nil) }

func gauge(name, help string, of func(Gauges) float64) moment {
	return moment{desc(name, help), prometheus.GaugeValue, of}
}

func counter(name, help string, of *atomic.Uint64) prometheus.Collector {
	return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(of.Load()) })
}

// zero makes what will be counted known before it happens: a counter that begins with its first event hides it.
func (m *Metrics) zero() {
	carried := map[string][]string{"outbound": {"mtls", "same_node", "plaintext"}, "inbound": {"mtls"}}
	for direction, all := range carried {
		for _, c := range all {
			m.connections.WithLabelValues(direction, c, Established)
			m.connections.WithLabelValues(direction, c, Failed)
		}
		m.connections.WithLabelValues(direction, "none", Refused)
		m.connections.WithLabelValues(direction, "none", Failed)
		m.handshakes.WithLabelValues(direction)
		for _, reason := range []string{"timeout", "no_certificate", "own_expired", "peer_untrusted", "peer_unexpected", "peer_refused", "connection_lost", "other"} {
			m.handshakeFailures.WithLabelValues(direction, reason)
		}
	}
}

// Observe has the gauges of a tunnel that is about to run shown. now may be called at any time.
func (m *Metrics) Observe(now func() Gauges) { m.now.Store(&now) }

// Connection counts a connection of an application.
func (m *Metrics) Connection(direction, carried, outcome string) {
	m.connections.WithLabelValues(direction, carried, outcome).Inc()
}

// Handshake counts one that succeeded.
func (m *Metrics) Handshake(direction string, took time.Duration) {
	m.handshakes.WithLabelValues(direction).Observe(took.Seconds())
}

// HandshakeFailed counts one that did not. reason is one of few.
func (m *Metrics) HandshakeFailed(direction, reason string) {
	m.handshakeFailures.WithLabelValues(direction, reason).Inc()
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(out chan<- *prometheus.Desc) {
	for _, p := range m.parts {
		p.Describe(out)
	}
	for _, one := range m.moments {
		out <- one.desc
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	for _, p := range m.parts {
		p.Collect(out)
	}
	var g Gauges
	if now := m.now.Load(); now != nil {
		g = (*now)()
	}
	for _, one := range m.moments {
		out <- prometheus.MustNewConstMetric(one.desc, one.kind, one.of(g))
	}
}
