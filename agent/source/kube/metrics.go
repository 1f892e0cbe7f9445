package kube

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the source's own. Their resources and reasons come from fixed lists.
type metrics struct {
	stale    *prometheus.Desc
	failures *prometheus.CounterVec
	health   []*health
}

func newMetrics() *metrics {
	return &metrics{
		stale: prometheus.NewDesc("culvert_source_stale_seconds",
			"For how long the state of a resource may have been outdated; 0 while it is followed.", []string{"resource"}, nil),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "culvert_source_watch_errors_total",
			Help: "Requests to the API server, and watches, that failed.",
		}, []string{"resource", "reason"}),
	}
}

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	if err := r.Register(m); err != nil {
		return fmt.Errorf("metrics of the Kubernetes source: %w", err)
	}
	return nil
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.stale
	m.failures.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	for _, h := range m.health {
		ch <- prometheus.MustNewConstMetric(m.stale, prometheus.GaugeValue, h.stale().Seconds(), h.resource)
	}
	m.failures.Collect(ch)
}

// failuresOf counts the failures of one resource.
func (m *metrics) failuresOf(resource string) func(reason string) {
	return func(reason string) { m.failures.WithLabelValues(resource, reason).Inc() }
}
