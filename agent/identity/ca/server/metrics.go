package server

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
)

// metrics are what /metrics tells, beside Go's own.
type metrics struct {
	registry *prometheus.Registry
	issued   prometheus.Counter
	refused  *prometheus.CounterVec
	seconds  prometheus.Histogram
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
	}
	for _, c := range classes() {
		m.refused.WithLabelValues(string(c))
	}
	expiry := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "culvert_ca_expiry_timestamp_seconds",
		Help: "When the first certificate between an SVID and its root expires, as a Unix time; 0 while there is none.",
	}, func() float64 {
		a := authority()
		if a == nil {
			return 0
		}
		return float64(a.NotAfter().Unix())
	})
	m.registry.MustRegister(m.issued, m.refused, m.seconds, expiry)
	return m
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
