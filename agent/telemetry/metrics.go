// Package telemetry tells Prometheus what an agent knows: what the kernel counts, how the workloads of the node and their
// SVIDs stand, and how long enrolments and changes of policy take.
//
// What the kernel counts is kept in its maps, which outlive the agent, so those counters go on when it restarts. All that
// has the name of a workload, a namespace or an identity is read anew at each scrape, and goes when that goes.
package telemetry

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/agent/identity"
)

// Sources are where the metrics come from. All of them may be asked by several goroutines at once.
type Sources struct {
	Kernel Kernel
	// SVIDs returns those of all identities in use.
	SVIDs func() []identity.Status
	// State asks the agent's loop.
	State func(context.Context) (*State, error)
}

// Metrics are those of one agent.
type Metrics struct {
	sources Sources
	kernel  kernelReader

	enrolment, propagation, requests prometheus.Histogram
	renewals, unreported             prometheus.Counter
	failures, missing                *prometheus.CounterVec
}

var _ prometheus.Collector = (*Metrics)(nil)

// The values of the label part of culvert_scrape_errors_total.
const (
	partCounters    = "kernel_counters"
	partConnections = "kernel_connections"
	partMaps        = "kernel_maps"
	partPlaintext   = "kernel_plaintext"
	partState       = "state"
)

// New returns metrics that are not registered anywhere yet.
func New(s Sources) *Metrics {
	histogram := func(name, help string, buckets ...float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	}
	counter := func(name, help string) prometheus.CounterOpts { return prometheus.CounterOpts{Name: name, Help: help} }
	m := &Metrics{
		sources: s, kernel: kernelReader{Kernel: s.Kernel},
		enrolment: histogram("culvert_enrolment_seconds",
			"Time to enrol a pod: from its proved network namespace to programs, policy and listeners in force.",
			.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5),
		propagation: histogram("culvert_policy_propagation_seconds",
			"Time from the arrival of a changed object to the kernel maps of all pods of this node whose modes it changes.",
			.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10),
		requests: histogram("culvert_svid_request_seconds",
			"Time in which the source of SVIDs answered with one.",
			.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10),
		renewals: prometheus.NewCounter(counter("culvert_svid_renewals_total", "SVIDs that took the place of an earlier one.")),
		failures: prometheus.NewCounterVec(counter("culvert_svid_failures_total",
			"Attempts to get an SVID that failed, by class of reason; they are tried again."), []string{"reason"}),
		unreported: prometheus.NewCounter(counter("culvert_refusals_unreported_total",
			"Refused plaintext connections of which no details were kept, because there were too many at once.")),
		missing: prometheus.NewCounterVec(counter("culvert_scrape_errors_total",
			"Scrapes that lack a part: the agent's loop did not answer, or the kernel not be read."), []string{"part"}),
	}
	for _, r := range reasons() {
		m.failures.WithLabelValues(r)
	}
	for _, part := range []string{partCounters, partConnections, partMaps, partPlaintext, partState} {
		m.missing.WithLabelValues(part)
	}
	return m
}

// Enrolled is told of each pod that was enrolled.
func (m *Metrics) Enrolled(took time.Duration) { m.enrolment.Observe(took.Seconds()) }

// ModesWritten is told when the modes that a change asks for stand in the kernel. arrived is when the first of the change
// came; a source that does not know leaves it zero.
func (m *Metrics) ModesWritten(arrived time.Time) {
	if !arrived.IsZero() {
		m.propagation.Observe(time.Since(arrived).Seconds())
	}
}

// Unreported is told how many refusals went by unreported.
func (m *Metrics) Unreported(n uint64) { m.unreported.Add(float64(n)) }

// Attempted is told what came of each attempt to get an SVID.
func (m *Metrics) Attempted(a identity.Attempt) {
	switch {
	case a.Err != nil:
		m.failures.WithLabelValues(reasonOf(a.Err)).Inc()
		return
	case a.Took > 0:
		m.requests.Observe(a.Took.Seconds())
	}
	if a.Renewal {
		m.renewals.Inc()
	}
}

// The values of the label reason of culvert_svid_failures_total.
const (
	reasonTimeout     = "timeout"
	reasonUnavailable = "unavailable"
	reasonRefused     = "refused"
	reasonOverloaded  = "overloaded"
	reasonOther       = "other"
)

func reasons() []string {
	return []string{reasonTimeout, reasonUnavailable, reasonRefused, reasonOverloaded, reasonOther}
}

func reasonOf(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return reasonTimeout
	}
	s, ok := status.FromError(err)
	if !ok {
		return reasonOther
	}
	switch s.Code() {
	case codes.DeadlineExceeded:
		return reasonTimeout
	case codes.Unavailable:
		return reasonUnavailable
	case codes.Unauthenticated, codes.PermissionDenied:
		return reasonRefused
	case codes.ResourceExhausted:
		return reasonOverloaded
	}
	return reasonOther
}

func (m *Metrics) kept() []prometheus.Collector {
	return []prometheus.Collector{m.enrolment, m.propagation, m.requests, m.renewals, m.failures, m.unreported, m.missing}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range descriptions() {
		out <- d.Desc
	}
	for _, c := range m.kept() {
		c.Describe(out)
	}
}

// Collect implements prometheus.Collector. What cannot be read is left out and counted, and the rest is told.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	now := time.Now()
	if events, err := m.sources.Kernel.Counters(); m.there(partCounters, err) {
		collectEvents(out, events)
	}
	if all, err := m.sources.Kernel.Connections(); m.there(partConnections, err) {
		collectConnections(out, all)
	}
	if fills, err := m.kernel.fills(now); m.there(partMaps, err) {
		collectFills(out, fills)
	}
	collectSVIDs(out, m.sources.SVIDs())
	ctx, cancel := context.WithTimeout(context.Background(), stateTimeout)
	defer cancel()
	if state, err := m.sources.State(ctx); m.there(partState, err) {
		collectState(out, state)
		if counts, err := m.kernel.plaintext(now); m.there(partPlaintext, err) {
			collectPlaintext(out, state, counts)
		}
	}
	for _, c := range m.kept() {
		c.Collect(out)
	}
}

func (m *Metrics) there(part string, err error) bool {
	if err != nil {
		m.missing.WithLabelValues(part).Inc()
	}
	return err == nil
}
