package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/culvert-mesh/culvert/e2e/lab"
)

const (
	// comeTrue is how long after a change a row may take to come out as expected.
	comeTrue = 2 * time.Second
	// atOnce separates a refusal from a connection that hung until something gave up.
	atOnce = time.Second
	// logDelay is how long a tunnel may take to write its line about a connection.
	logDelay = 500 * time.Millisecond
)

// Row is one line of the result.
type Row struct {
	Step        string        `json:"step"`
	IP          int           `json:"ip"`
	From        string        `json:"from"`
	To          string        `json:"to"`
	Expected    string        `json:"expected"`
	Got         string        `json:"got"`
	OK          bool          `json:"ok"`
	Problems    []string      `json:"problems,omitempty"`
	CarriedBy   string        `json:"carriedBy,omitempty"` // mtls, same-node or plaintext
	Source      string        `json:"sourceIdentity,omitempty"`
	Destination string        `json:"destinationIdentity,omitempty"`
	DecidedBy   string        `json:"decidedBy,omitempty"`
	Link        string        `json:"link"` // what the capture between the nodes showed
	Attempts    int           `json:"attempts"`
	Took        time.Duration `json:"took"` // the client's time for the last attempt, in nanoseconds
}

func (r *Row) problem(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

// player plays steps on a mesh.
type player struct {
	mesh     *Mesh
	versions []int
	progress func(string)
	rows     []Row
}

// Steps returns the names of the steps in their order.
func Steps() []string {
	var names []string
	for _, s := range walkthrough() {
		names = append(names, s.name)
	}
	return names
}

// Play plays one step over the IP versions given. A row that came out differently is in the rows; an
// error means that the step could not be played.
func (m *Mesh) Play(ctx context.Context, name string, versions []int, progress func(string)) ([]Row, error) {
	steps := walkthrough()
	i := slices.IndexFunc(steps, func(s step) bool { return s.name == name })
	if i < 0 {
		return nil, fmt.Errorf("demo: no step %q", name)
	}
	p := &player{mesh: m, versions: versions, progress: progress}
	err := p.playStep(ctx, steps[i])
	return p.rows, err
}

func (p *player) playStep(ctx context.Context, s step) error {
	if err := p.mesh.Apply(ctx, s.policies...); err != nil {
		return err
	}
	if s.play != nil {
		return errors.Join(s.play(ctx, p, s), p.mesh.Check())
	}
	deadline := time.Now().Add(comeTrue)
	for _, c := range s.checks {
		for _, version := range p.versions {
			row, err := p.playCheck(ctx, s, c, version, deadline)
			if err != nil {
				return err
			}
			p.add(row)
			// The first rows waited for the change; the later ones get their time as well.
			deadline = time.Now().Add(comeTrue)
		}
	}
	return p.mesh.Check()
}

func (p *player) add(r Row) {
	p.rows = append(p.rows, r)
	p.progress(r.summary())
}

// playCheck tries until the row is as expected or its time is up.
func (p *player) playCheck(ctx context.Context, s step, c check, version int, deadline time.Time) (Row, error) {
	for attempts := 1; ; attempts++ {
		row, err := p.attempt(ctx, s, c, version)
		row.Attempts = attempts
		if err != nil || ctx.Err() != nil {
			return row, errors.Join(err, ctx.Err())
		}
		if row.OK || time.Now().After(deadline) {
			return row, nil
		}
	}
}

func (p *player) attempt(ctx context.Context, s step, c check, version int) (Row, error) {
	m := p.mesh
	row := Row{Step: s.name, IP: version, From: c.from, To: c.target(), Expected: c.expectation(m)}
	address := m.PodAddr(c.to, version, c.port)
	if c.service {
		address = netip.AddrPortFrom(serviceAddress(c.to, version), c.port)
	}
	begin := time.Now()
	capture, err := m.nodes[0].lab.Capture(ctx)
	if err != nil {
		return row, err
	}
	marker := "culvert-demo-" + rand.Text()
	attempt := m.Request(ctx, c.from, address, marker)
	recording := capture.Stop()
	row.Took = attempt.Latency
	row.Got = gotOf(attempt)
	e, err := m.evidence(ctx, c, attempt, begin, version)
	if err != nil {
		return row, err
	}
	row.CarriedBy, row.Source, row.Destination, row.DecidedBy = e.carried, e.source, e.destination, e.decided
	judge(&row, c, attempt, e, m)
	m.judgeLink(&row, c, recording, marker, attempt.OK)
	row.OK = len(row.Problems) == 0
	return row, nil
}

// expectedCarrier is the carrier that the tunnel's log has to name.
func (c check) expectedCarrier(m *Mesh) string {
	if c.carried == byMTLS && m.sameNode(c.from, c.to) {
		return bySameNode
	}
	return c.carried
}

func (c check) expectation(m *Mesh) string {
	if c.want == succeeds {
		return "ok, " + c.expectedCarrier(m)
	}
	return string(c.want)
}

func (m *Mesh) sameNode(a, b string) bool { return m.pods[a].Node == m.pods[b].Node }

func gotOf(a Attempt) string {
	switch {
	case a.OK:
		return "ok"
	case a.Errno == "ECONNREFUSED":
		return "refused"
	case a.Errno != "":
		return a.Errno
	}
	return a.Error
}

// judge compares what the client and the logs say with what was expected.
func judge(row *Row, c check, a Attempt, e evidence, m *Mesh) {
	switch c.want {
	case succeeds:
		judgeSuccess(row, c, a, e, m)
	case refused:
		if a.OK || a.Errno != "ECONNREFUSED" {
			row.problem("want ECONNREFUSED, got %s (%s)", row.Got, a.Error)
		} else if !e.logged {
			row.problem("the refusal is not in the tunnel's log")
		}
	case rejected:
		if a.OK || a.Errno != "ECONNREFUSED" && a.Errno != "ECONNRESET" && a.Errno != "EOF" {
			row.problem("want an immediate reset, got %s (%s)", row.Got, a.Error)
		}
	}
	if c.want != succeeds && a.Latency > atOnce {
		row.problem("took %s, want at once", a.Latency.Round(time.Millisecond))
	}
	if c.decided != "" && e.decided != c.decided {
		row.problem("decided by %q, want %q", e.decided, c.decided)
	}
}

func judgeSuccess(row *Row, c check, a Attempt, e evidence, m *Mesh) {
	if !a.OK {
		row.problem("want ok, got %s (%s)", row.Got, a.Error)
		return
	}
	want := c.expectedCarrier(m)
	if e.carried != want {
		row.problem("carried by %s, want %s", e.carried, want)
	}
	if want != byPlaintext && (e.source != identityOf(c.from) || e.destination != identityOf(c.to)) {
		row.problem("identities %q and %q, want %q and %q", e.source, e.destination, identityOf(c.from), identityOf(c.to))
	}
	if a.Answer.Server != c.to {
		row.problem("%s answered", a.Answer.Server)
	}
	if seen, err := netip.ParseAddrPort(a.Answer.Client); err == nil && e.logged && want == byPlaintext {
		// The tunnel connected anew from inside the client's pod: its address, another port.
		if seen.Addr().Unmap() == m.pods[c.from].IP(row.IP) {
			return
		}
	}
	if !sameAddrPort(a.Answer.Client, a.Local) {
		row.problem("the server saw %s, want the client's own %s", a.Answer.Client, a.Local)
	}
}

// judgeLink compares what crossed between the nodes with what may be readable there.
func (m *Mesh) judgeLink(row *Row, c check, r *lab.Recording, marker string, succeeded bool) {
	visible := r.Contains(marker)
	wantVisible := succeeded && c.carried == byPlaintext && !m.sameNode(c.from, c.to)
	switch {
	case r.Dropped > 0:
		row.problem("capture lost %d packets", r.Dropped)
	case visible && !wantVisible:
		row.problem("the marker is readable on the link")
	case !visible && wantVisible:
		row.problem("the marker is not on the link: the capture proves nothing")
	case succeeded && !m.sameNode(c.from, c.to) && r.Packets == 0:
		row.problem("nothing crossed the link")
	}
	switch {
	case visible:
		row.Link = "marker readable"
	case m.sameNode(c.from, c.to):
		row.Link = "not crossed"
	default:
		row.Link = fmt.Sprintf("marker absent in %d packets", r.Packets)
	}
}

func sameAddrPort(a, b string) bool {
	x, errX := netip.ParseAddrPort(a)
	y, errY := netip.ParseAddrPort(b)
	return errX == nil && errY == nil && x.Port() == y.Port() && x.Addr().Unmap() == y.Addr().Unmap()
}
