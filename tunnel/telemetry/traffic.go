package telemetry

import (
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// MostSeries bounds the label sets of the traffic. Whatever comes beyond it is counted with OtherLabel for both parties.
	MostSeries = 65536
	// comfortable is how many label sets stay although they have no open connection: who counts on a counter wants it to
	// be there the next time.
	comfortable = MostSeries / 2
	// goneKept is how long a label set stays at least. Two scrapes must see the last values.
	goneKept = 2 * time.Minute
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
		known = newParty(p)
		t.parties[known.Party] = known
	}
	return known
}

// local returns the party of this node.
func (s *Series) local() Party {
	p := s.key.destination.Party
	if s.key.reporter == ReporterSource {
		p = s.key.source.Party
	}
	p.Service = Service{}
	return p
}

// Sweep drops the series that nobody needs any more. present says whether a party has a workload on this node.
func (t *Traffic) Sweep(now time.Time, present func(Party) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	kept := make([]*Series, 0, len(t.order))
	for _, s := range t.order {
		if s.idleFor(now) > goneKept && s.abandoned(present) {
			delete(t.series, s.key)
			continue
		}
		kept = append(kept, s)
	}
	if kept = t.evict(kept, now); len(kept) == len(t.order) {
		return
	}
	used := map[Party]*party{}
	for _, s := range kept {
		used[s.key.source.Party], used[s.key.destination.Party] = s.key.source, s.key.destination
	}
	t.parties, t.order = used, kept
}

// abandoned says that the local workload is gone. Those that found no room are nobody's.
func (s *Series) abandoned(present func(Party) bool) bool {
	local := s.local()
	return local != otherParty() && !present(local)
}

// evict takes out what has been idle for longest when there is more than is comfortable.
func (t *Traffic) evict(all []*Series, now time.Time) []*Series {
	tooMany := len(all) - comfortable
	if tooMany <= 0 {
		return all
	}
	var idle []*Series
	for _, s := range all {
		if s.idleFor(now) > goneKept {
			idle = append(idle, s)
		}
	}
	slices.SortFunc(idle, func(a, b *Series) int { return a.idle.Compare(b.idle) })
	for _, s := range idle[:min(tooMany, len(idle))] {
		delete(t.series, s.key)
	}
	return slices.DeleteFunc(all, func(s *Series) bool { return t.series[s.key] == nil })
}

// idleFor is how long there has been no open connection; negative while there is one.
func (s *Series) idleFor(now time.Time) time.Duration {
	if s.open > 0 {
		return -1
	}
	return now.Sub(s.idle)
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
		{"istio_tcp_connections_opened_total", "Connections that were carried.",
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
	b = s.key.destination.appendDestination(s.key.source.appendSource(append(b, '"')))
	b = append(append(b, `,request_protocol="tcp",response_flags="`...), s.key.flags...)
	b = append(append(b, `",connection_security_policy="`...), s.key.security...)
	return append(strconv.AppendUint(append(b, `"} `...), value, 10), '\n')
}
