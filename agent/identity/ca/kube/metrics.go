package kube

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/agent/identity/ca/rotation"
)

// Metrics are those of what a CA does with the API server.
type Metrics struct {
	leader           prometheus.Gauge
	phase            *prometheus.GaugeVec
	since, wait      prometheus.Gauge
	rotations        *prometheus.CounterVec
	rotationFailures prometheus.Counter
	lost             prometheus.Gauge
	published        prometheus.Counter
	publishFailures  prometheus.Counter
	namespaces       *prometheus.GaugeVec
	reviewSeconds    prometheus.Histogram
	reviewFailures   prometheus.Counter
}

// NewMetrics returns metrics that are not registered anywhere yet.
func NewMetrics() *Metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "culvert_ca_" + name, Help: help})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "culvert_ca_" + name, Help: help})
	}
	m := &Metrics{
		leader: gauge("leader", "1 in the replica that rotates and publishes."),
		phase: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "culvert_ca_rotation_phase",
			Help: "1 for the phase that the rotation of the root is in; told by the leader, of a root made by the CA."}, []string{"phase"}),
		since: gauge("rotation_phase_since_timestamp_seconds", "Since when the bundle is what this phase wants, as a Unix time; told by the leader, 0 elsewhere."),
		wait:  gauge("rotation_wait_seconds", "How long the phase takes at least; told by the leader, 0 elsewhere and for a phase that does not wait."),
		rotations: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "culvert_ca_rotation_steps_total",
			Help: "Steps taken: sign (new intermediate or bundle), begin, switch and drop (of a root)."}, []string{"step"}),
		rotationFailures: counter("rotation_failures_total", "Looks at root and intermediate that ended with an error; it is tried again."),
		lost:             gauge("secret_lost", "1 in the leader while a Secret of the CA is gone that only a backup, or a person's decision, can replace."),
		published:        counter("bundle_writes_total", "ConfigMaps with the bundle that were made or repaired."),
		publishFailures:  counter("bundle_write_failures_total", "ConfigMaps with the bundle that could not be written; it is tried again."),
		namespaces: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "culvert_ca_bundle_namespaces",
			Help: "Namespaces by whether their ConfigMap holds the bundle; told by the leader."}, []string{"state"}),
		reviewSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "culvert_ca_token_review_seconds",
			Help: "Time in which the API server answered a TokenReview.", Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5}}),
		reviewFailures: counter("token_review_failures_total", "TokenReviews that got no answer, or were held back."),
	}
	m.setPhase("", time.Time{}, 0)
	for _, a := range []rotation.Action{rotation.Sign, rotation.Begin, rotation.Switch, rotation.Drop} {
		m.rotations.WithLabelValues(string(a))
	}
	return m
}

// Register adds them to r.
func (m *Metrics) Register(r prometheus.Registerer) {
	r.MustRegister(m.leader, m.phase, m.since, m.wait, m.rotations, m.rotationFailures, m.lost, m.published, m.publishFailures,
		m.namespaces, m.reviewSeconds, m.reviewFailures)
}

// setPhase is told with the zero time by who does not lead, or does not know since when.
func (m *Metrics) setPhase(now rotation.Phase, since time.Time, wait time.Duration) {
	if since.IsZero() {
		since, wait = time.Unix(0, 0), 0
	}
	m.since.Set(float64(since.Unix()))
	m.wait.Set(wait.Seconds())
	for _, p := range []rotation.Phase{rotation.Stable, rotation.Announce, rotation.Retire} {
		value := 0.0
		if p == now {
			value = 1
		}
		m.phase.WithLabelValues(string(p)).Set(value)
	}
}

func (m *Metrics) setLost(lost bool) {
	if lost {
		m.lost.Set(1)
		return
	}
	m.lost.Set(0)
}

func (m *Metrics) setNamespaces(current, pending int) {
	m.namespaces.WithLabelValues("current").Set(float64(current))
	m.namespaces.WithLabelValues("pending").Set(float64(pending))
}

func (m *Metrics) reviewed(took time.Duration, err error) {
	if err != nil {
		m.reviewFailures.Inc()
		return
	}
	m.reviewSeconds.Observe(took.Seconds())
}
