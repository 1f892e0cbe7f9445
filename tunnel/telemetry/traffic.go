package telemetry

import (
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// MostSeries bounds the label sets of the traffic. Whatever comes beyond it is counted with OtherLabel for both parties.
	MostSeries = 65536
	// idleKept is how long a label set stays that has no open connection.
	idleKept = 15 * time.Minute
	// goneKept is the same when its local workload is gone. Two scrapes at least must see the last values.
	goneKept = 2 * time.Minute

	// longestPrincipal bounds what a peer of another trust domain can have us remember.
	longestPrincipal = 512

	unknownLabel = "unknown"
	// OtherLabel stands for the parties that found no room.
	OtherLabel = "other"
)

// Values of the label reporter: which end of the connection is of this node.
const (
	ReporterSource      = "source"
	ReporterDestination = "destination"
)

// Values of the label connection_security_policy.
const (
	SecurityMutualTLS = "mutual_tls"
	SecurityNone      = "none"
	SecurityUnknown   = "unknown"
)

// Values of the label response_flags. DENY and CONNECT are those of Istio's ambient proxy, NR and UH are Envoy's.
const (
	FlagsNone        = "-"
	FlagsDenied      = "DENY"    // by policy
	FlagsFailed      = "CONNECT" // could not be made
	FlagsNoRoute     = "NR"      // nobody said where to
	FlagsNoEndpoints = "UH"      // nobody is there
)

// Party is one end of a connection as labels tell it. What is empty is unknown.
type Party struct{ Workload, Namespace, Principal string }

// PartyOf reads a SPIFFE ID. The workload is the service account: the names of pods would be without bound.
func PartyOf(identity string) Party {
	if len(identity) > longestPrincipal {
		return otherParty()
	}
	p := Party{Principal: identity}
	if _, path, ok := strings.Cut(identity, "/ns/"); ok {
		if namespace, account, ok := strings.Cut(path, "/sa/"); ok {
			p.Namespace, p.Workload = namespace, account
		}
	}
	return p
}

func otherParty() Party {
	return Party{Workload: OtherLabel, Namespace: OtherLabel, Principal: OtherLabel}
}

// Labels are what a connection is counted under.
type Labels struct {
	Reporter            string
	Source, Destination Party
	Security            string
	Flags               string
}

// Traffic counts connections under Istio's names. The zero value is ready to use.
type Traffic struct {
	mu      sync.Mutex
	series  map[seriesKey]*Series
	parties map[Party]*party
	// order has the same as series. What readers have of it is only ever appended to; Sweep makes a new one.
	order []*Series
}

type seriesKey struct {
	reporter, security, flags string
	source, destination       *party
}

// party is a Party that many series share, as it is written.
type party struct {
	Party
	asSource, asDestination string
}

func newParty(p Party) *party {
	return &party{Party: p, asSource: p.text("source_"), asDestination: p.text("destination_")}
}

func (p Party) text(prefix string) string {
	var b []byte
	for _, l := range [][2]string{{"workload", p.Workload}, {"workload_namespace", p.Namespace}, {"principal", p.Principal}} {
		if l[1] == "" {
			l[1] = unknownLabel
		}
		b = append(append(append(b, ','), prefix...), l[0]...)
		b = append(appendEscaped(append(b, `="`...), l[1]), '"')
	}
	return string(b)
}

// appendEscaped writes a label's value as the text format wants it.
func appendEscaped(b []byte, value string) []byte {
	for i := range len(value) {
		switch c := value[i]; c {
		case '\\', '"':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, `\n`...)
		default:
			b = append(b, c)
		}
	}
	return b
}

// Series is what was counted under one set of labels.
type Series struct {
	key                                    seriesKey
	opened, closed, failed, sent, received atomic.Uint64

	// guarded by Traffic.mu
	open int
	idle time.Time // since when there was none
}

// Open counts a connection that was made. Close must be called with what it returns.
func (t *Traffic) Open(l Labels) *Series {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.find(l)
	s.open++
	s.opened.Add(1)
	return s
}

// Close counts the end of a connection.
func (t *Traffic) Close(s *Series) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.open--
	s.idle = time.Now()
	s.closed.Add(1)
}

// Fail counts a connection that was not made.
func (t *Traffic) Fail(l Labels) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.find(l)
	s.idle = time.Now()
	s.failed.Add(1)
}

// Transferred counts bytes: request from source to destination, response the other way.
func (s *Series) Transferred(request, response uint64) {
	s.received.Add(request)
	s.sent.Add(response)
}

// find returns the series of labels, making it if there is room. The caller holds the lock.
func (t *Traffic) find(l Labels) *Series {
	key := seriesKey{reporter: l.Reporter, security: l.Security, flags: l.Flags}
	key.source, key.destination = t.parties[l.Source], t.parties[l.Destination]
	if s := t.series[key]; s != nil {
		return s
	}
	if t.series == nil {
		t.series, t.parties = map[seriesKey]*Series{}, map[Party]*party{}
	}
	if len(t.series) >= MostSeries {
		l.Source, l.Destination = otherParty(), otherParty()
	}
	key.source, key.destination = t.party(l.Source), t.party(l.Destination)
	s := t.series[key]
	if s == nil {
		s = &Series{key: key}
		t.series[key], t.order = s, append(t.order, s)
	}
	return s
}

func (t *Traffic) party(p Party) *party {
	known := t.parties[p]
	if known == nil {
		known = newParty(Party{Workload: strings.Clone(p.Workload), Namespace: strings.Clone(p.Namespace), Principal: strings.Clone(p.Principal)})
		t.parties[known.Party] = known
	}
	return known
}

// local returns the party of this node.
func (s *Series) local() Party {
	if s.key.reporter == ReporterSource {
		return s.key.source.Party
	}
	return s.key.destination.Party
}

// Sweep drops the series that nobody needs any more. present says whether a principal has a workload on this node.
func (t *Traffic) Sweep(now time.Time, present func(principal string) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	used := map[Party]*party{}
	kept := make([]*Series, 0, len(t.order))
	for _, s := range t.order {
		idle := now.Sub(s.idle)
		if s.open == 0 && (idle > idleKept || idle > goneKept && !present(s.local().Principal)) {
			delete(t.series, s.key)
			continue
		}
		kept = append(kept, s)
		used[s.key.source.Party], used[s.key.destination.Party] = s.key.source, s.key.destination
	}
	t.parties, t.order = used, kept
}

// all returns the series as they are now, the oldest first. It is shared by all who ask, and not to be altered.
func (t *Traffic) all() []*Series {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.order
}

// family is one of the metrics that every series has.
type family struct {
	name, help string
	of         func(*Series) *atomic.Uint64
	failures   bool // it counts what was not made
}

// families returns them so that whoever reads them one after the other sees no more ends than beginnings.
func families() []family {
	return []family{
		{"istio_tcp_connections_closed_total", "Connections that were carried and have ended.",
			func(s *Series) *atomic.Uint64 { return &s.closed }, false},
		{"istio_tcp_connections_failed_total", "Connections that were refused or could not be made; response_flags says why.",
			func(s *Series) *atomic.Uint64 { return &s.failed }, true},
		{"istio_tcp_connections_opened_total", "Connections that were carried. The workload is the service account of the identity.",
			func(s *Series) *atomic.Uint64 { return &s.opened }, false},
		{"istio_tcp_received_bytes_total", "Bytes from source to destination, whoever reports.",
			func(s *Series) *atomic.Uint64 { return &s.received }, false},
		{"istio_tcp_sent_bytes_total", "Bytes from destination to source, whoever reports.",
			func(s *Series) *atomic.Uint64 { return &s.sent }, false},
	}
}

// appendLine writes one sample.
func (s *Series) appendLine(b []byte, name string, value uint64) []byte {
	b = append(append(append(b, name...), `{reporter="`...), s.key.reporter...)
	b = append(append(append(b, '"'), s.key.source.asSource...), s.key.destination.asDestination...)
	b = append(b, `,destination_service="unknown",request_protocol="tcp",connection_security_policy="`...)
	b = append(append(append(b, s.key.security...), `",response_flags="`...), s.key.flags...)
	return append(strconv.AppendUint(append(b, `"} `...), value, 10), '\n')
}
