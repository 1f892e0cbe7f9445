package server

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/kube"
)

// metrics are what /metrics tells, beside Go's own.
type metrics struct {
	registry *prometheus.Registry
	issued   prometheus.Counter
	refused  *prometheus.CounterVec
	seconds  prometheus.Histogram

	streams        prometheus.Gauge
	streamsRefused prometheus.Counter
	connsRefused   prometheus.Counter
}

func newMetrics(authority func() *ca.Authority) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		issued: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "culvert_ca_certificates_issued_total", Help: "Certificates issued."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "culvert_ca_requests_refused_total", Help: "Requests that got no certificate, by class of reason."}, []string{"reason"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "culvert_ca_request_seconds", Help: "Time to answer a request for a certificate.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "culvert_ca_bundle_streams", Help: "Streams by which agents are told the roots."}),
		streamsRefused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "culvert_ca_bundle_streams_refused_total", Help: "Streams that were refused because there were too many."}),
		connsRefused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "culvert_ca_connections_refused_total", Help: "Connections that were closed because their address had too many."}),
	}
	for _, c := range classes() {
		m.refused.WithLabelValues(string(c))
	}
	when := func(name, help string, of func(*ca.Authority) time.Time) prometheus.GaugeFunc {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "culvert_ca_" + name + "_timestamp_seconds",
			Help: help + ", as a Unix time; 0 while there is none."}, func() float64 {
			a := authority()
			if a == nil {
				return 0
			}
			return float64(of(a).Unix())
		})
	}
	m.registry.MustRegister(m.issued, m.refused, m.seconds, m.streams, m.streamsRefused, m.connsRefused,
		when("expiry", "When the first certificate between an SVID and its root expires", (*ca.Authority).NotAfter),
		when("root_expiry", "When the root expires that SVIDs lead to", func(a *ca.Authority) time.Time { return a.Roots()[0].NotAfter }),
		when("root_not_before", "Since when that root is valid", func(a *ca.Authority) time.Time { return a.Roots()[0].NotBefore }),
		when("intermediate_not_before", "Since when the certificate is valid that signs SVIDs", func(a *ca.Authority) time.Time { return a.Certificate().NotBefore }),
		when("intermediate_expiry", "When the certificate expires that signs SVIDs", func(a *ca.Authority) time.Time { return a.Certificate().NotAfter }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "culvert_ca_bundle_roots",
			Help: "Roots in the bundle: more than one while the root is rotated."}, func() float64 {
			a := authority()
			if a == nil {
				return 0
			}
			return float64(len(a.Roots()))
		}))
	return m
}

// Registry has the metrics of a CA with that authority that serves nobody yet: for those who check what is written about
// them.
func Registry(authority *ca.Authority) *prometheus.Registry {
	m := newMetrics(func() *ca.Authority { return authority })
	kube.NewMetrics().Register(m.registry)
	return m.registry
}

func (m *metrics) answered(err error, took time.Duration) {
	m.seconds.Observe(took.Seconds())
	if err == nil {
		m.issued.Inc()
		return
	}
	f := failure{class: internal}
	errors.As(err, &f)
	m.refused.WithLabelValues(string(f.class)).Inc()
}
