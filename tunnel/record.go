package tunnel

import (
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/tunnel/control"
	"github.com/culvert-mesh/culvert/tunnel/hbone"
	"github.com/culvert-mesh/culvert/tunnel/telemetry"
)

const (
	// toldOpen is how long a connection must last to be reported before its end.
	toldOpen = time.Second
	// countedEvery is how often the bytes of an open connection are counted.
	countedEvery = 10 * time.Second
)

// How a connection was carried.
const (
	carriedMTLS      = "mtls"
	carriedSameNode  = "same-node"
	carriedPlaintext = "plaintext"
)

const (
	directionInbound  = "inbound"
	directionOutbound = "outbound"
)

// party is one end of a connection, as far as it is known.
type party struct {
	workload string // "namespace/name"
	identity string
	address  netip.AddrPort
	naming   naming
	service  string // "namespace/name" of the one that a destination was reached by
}

// record is one connection as logs, metrics and the agent are told of it: one of complete, refused and turnedAway ends it,
// before which open may be called. What stands above mu does not change once it is open.
type record struct {
	tunnel      *tunnel
	workload    *workload // of this node
	direction   string
	source      party
	destination party
	carried     string // empty until it is known
	mode        string // of the port, where it is ours
	policy      string
	start       time.Time

	mu      sync.Mutex // between timer and end
	live    func() hbone.Stats
	series  []*telemetry.Series
	timer   *time.Timer
	number  uint64 // of its flow, once told
	counted hbone.Stats
	ended   bool
}

// open tells that the connection is there. live says what it has carried so far.
func (r *record) open(live func() hbone.Stats) {
	metrics := r.tunnel.Metrics
	metrics.Connection(r.direction, r.carriedLabel(), telemetry.Established)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live = live
	for _, labels := range r.labels(telemetry.FlagsNone) {
		r.series = append(r.series, metrics.Traffic.Open(labels))
	}
	r.timer = time.AfterFunc(toldOpen, r.tick)
	r.logOpen()
}

// tick tells of a connection that lasts.
func (r *record) tick() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return
	}
	if r.number == 0 {
		r.report(true, r.live(), r.flowCarried(), "")
	}
	r.count(r.live())
	r.timer.Reset(countedEvery)
}

// count adds what is new to the metrics. The caller holds the lock.
func (r *record) count(now hbone.Stats) {
	// What was read of a connection that then broke may not have reached the other side.
	now.Sent, now.Received = max(now.Sent, r.counted.Sent), max(now.Received, r.counted.Received)
	for _, s := range r.series {
		s.Transferred(now.Sent-r.counted.Sent, now.Received-r.counted.Received)
	}
	r.counted = now
}

// complete tells that the connection has ended, or could not be made.
func (r *record) complete(stats hbone.Stats, err error) {
	flags := telemetry.FlagsNone
	if !r.close(stats) {
		flags = r.notMade(err)
		r.countFailure(flags)
	}
	reason := ""
	if err != nil {
		reason = err.Error()
	}
	r.logComplete(stats, flags, reason)
	r.tell(stats, flags, reason)
}

// close ends what open began, if it did.
func (r *record) close(stats hbone.Stats) (opened bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.live == nil {
		return false
	}
	r.ended = true
	r.timer.Stop()
	r.count(stats)
	for _, s := range r.series {
		r.tunnel.Metrics.Traffic.Close(s)
	}
	return true
}

// notMade returns the flags of an error.
func (r *record) notMade(err error) string {
	if status := (*hbone.StatusError)(nil); errors.Is(err, errDisabled) || errors.As(err, &status) && status.Code == http.StatusUnauthorized {
		return telemetry.FlagsDenied
	}
	return telemetry.FlagsFailed
}

// refused tells that policy forbids the connection, or that nobody is there.
func (r *record) refused(flags, reason string) {
	r.turnedAway(slog.LevelInfo, "connection refused", flags, reason)
}

// turnedAway tells of a connection that was not even tried, or of which the other side is told why not.
func (r *record) turnedAway(level slog.Level, message, flags, reason string, more ...slog.Attr) {
	r.countFailure(flags)
	r.logRefused(level, message, flags, reason, more)
	r.tell(hbone.Stats{}, flags, reason)
}

func (r *record) countFailure(flags string) {
	outcome, carried := telemetry.Failed, r.carriedLabel()
	if flags == telemetry.FlagsDenied {
		outcome, carried = telemetry.Refused, "none"
	}
	r.tunnel.Metrics.Connection(r.direction, carried, outcome)
	for _, labels := range r.labels(flags) {
		r.tunnel.Metrics.Traffic.Fail(labels)
	}
}

// labels returns those of every end that is of this node.
func (r *record) labels(flags string) []telemetry.Labels {
	l := telemetry.Labels{
		Reporter: telemetry.ReporterSource, Flags: flags, Security: telemetry.SecurityUnknown,
		Source: r.tunnel.labels(r.source), Destination: r.tunnel.labels(r.destination),
	}
	if flags == telemetry.FlagsNone {
		l.Security = telemetry.SecurityNone
		if r.carried == carriedMTLS {
			l.Security = telemetry.SecurityMutualTLS
		}
	}
	if r.direction == directionInbound {
		l.Reporter = telemetry.ReporterDestination
	}
	if r.carried != carriedSameNode {
		return []telemetry.Labels{l}
	}
	there := l
	there.Reporter = telemetry.ReporterDestination
	return []telemetry.Labels{l, there}
}

func (r *record) carriedLabel() string {
	switch r.carried {
	case "":
		return "none"
	case carriedSameNode:
		return "same_node"
	default:
		return r.carried
	}
}

func (r *record) flowCarried() control.Carried {
	switch r.carried {
	case carriedMTLS:
		return control.Carried_CARRIED_MTLS
	case carriedSameNode:
		return control.Carried_CARRIED_SAME_NODE
	default:
		return control.Carried_CARRIED_PLAINTEXT
	}
}

// tell reports the end to the agent.
func (r *record) tell(stats hbone.Stats, flags, reason string) {
	carried := r.flowCarried()
	switch flags {
	case telemetry.FlagsNone:
	case telemetry.FlagsDenied:
		carried = control.Carried_CARRIED_REFUSED
	default:
		carried = control.Carried_CARRIED_FAILED
	}
	r.report(false, stats, carried, reason)
}

// report queues a flow for the agent.
func (r *record) report(open bool, stats hbone.Stats, carried control.Carried, reason string) {
	if r.number == 0 {
		r.number = r.tunnel.flows.number.Add(1)
	}
	f := &control.Flow{
		Number: r.number, Workload: r.workload.id, Inbound: r.direction == directionInbound, Carried: carried, Open: open,
		SourceWorkload: r.source.workload, DestinationWorkload: r.destination.workload,
		SourceIdentity: r.source.identity, DestinationIdentity: r.destination.identity,
		SourcePort: uint32(r.source.address.Port()), DestinationPort: uint32(r.destination.address.Port()),
		Policy: clip(r.policy), Reason: clip(reason), Sent: stats.Sent, Received: stats.Received,
		OpenedUnixNanoseconds: r.start.UnixNano(),
	}
	if a := r.source.address.Addr(); a.IsValid() {
		f.SourceAddress = control.FromAddr(a)
	}
	if a := r.destination.address.Addr(); a.IsValid() {
		f.DestinationAddress = control.FromAddr(a)
	}
	if !open {
		f.ClosedUnixNanoseconds = time.Now().UnixNano()
	}
	r.tunnel.flows.report(f)
}

// clip makes a text fit for a message: an error may quote what a peer has sent.
func clip(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), flowText)], "?")
}
