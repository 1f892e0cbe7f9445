package demo

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/e2e/lab"
)

// held is a connection that a process in a pod keeps open, with a request on it every so often.
type held struct {
	cmd    *lab.Cmd
	cancel context.CancelFunc
	ended  chan struct{}

	mu        sync.Mutex
	good      int
	slowest   time.Duration
	local     string
	failure   Attempt
	failedAt  time.Time
	complaint bytes.Buffer
}

// hold opens the connection; the first request on it is answered when it returns.
func (m *Mesh) hold(ctx context.Context, from string, to netip.AddrPort, interval time.Duration) (*held, error) {
	h := &held{ended: make(chan struct{})}
	ctx, h.cancel = context.WithCancel(ctx)
	h.cmd = m.pods[from].Command(ctx, m.binary, "demo", "workload", "hold", "http://"+to.String()+"/",
		"--marker", "culvert-demo-"+rand.Text(), "--interval", interval.String())
	h.cmd.Stderr = &h.complaint
	out, err := h.cmd.StdoutPipe()
	if err == nil {
		err = h.cmd.Start()
	}
	if err != nil {
		h.cancel()
		return nil, fmt.Errorf("demo: hold a connection from %s: %w", from, err)
	}
	go func() {
		defer close(h.ended)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			h.add(lines.Bytes())
		}
		_ = h.cmd.Wait() // that it was killed, or failed as it reported, is known
	}()
	err = poll(ctx, requestTimeout, func() (bool, error) {
		count, failure, at := h.state()
		if !at.IsZero() {
			return false, fmt.Errorf("demo: %s to %s: %s", from, to, failure.Error)
		}
		return count > 0, nil
	})
	if err != nil {
		h.stop()
		return nil, err
	}
	return h, nil
}

// Hold opens a connection that carries a request every so often, until stop is called.
func (m *Mesh) Hold(ctx context.Context, from string, to netip.AddrPort) (stop func(), err error) {
	h, err := m.hold(ctx, from, to, 100*time.Millisecond)
	if err != nil {
		return nil, err
	}
	return h.stop, nil
}

func (h *held) add(text []byte) {
	var a Attempt
	err := json.Unmarshal(text, &a)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil && a.OK {
		h.good++
		h.slowest = max(h.slowest, a.Latency)
		h.local = a.Local
		return
	}
	if err != nil {
		a.Error = err.Error()
	}
	h.failure, h.failedAt = a, time.Now()
}

// state is the number of answered requests and, with a time, the failure that ended the connection.
func (h *held) state() (good int, failure Attempt, failedAt time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.good, h.failure, h.failedAt
}

func (h *held) stop() {
	h.cancel()
	<-h.ended
}

// playOpenConnection opens one connection of each kind, turns the port STRICT, and looks which ones stay.
func playOpenConnection(ctx context.Context, p *player, s step) error {
	for _, version := range p.versions {
		if err := p.mesh.Apply(ctx); err != nil {
			return err
		}
		if err := p.openConnection(ctx, s, version); err != nil {
			return err
		}
	}
	return nil
}

func (p *player) openConnection(ctx context.Context, s step, version int) error {
	const interval = 20 * time.Millisecond
	m := p.mesh
	plain, err := m.hold(ctx, legacyApp, m.PodAddr(productpage, version, 9080), interval)
	if err != nil {
		return err
	}
	defer plain.stop()
	tunnelled, err := m.hold(ctx, nginx, netip.AddrPortFrom(serviceAddress(productpage, version), 9080), interval)
	if err != nil {
		return err
	}
	defer tunnelled.stop()
	begin := time.Now()
	if err := m.Apply(ctx, "default-strict"); err != nil {
		return err
	}
	closing := poll(ctx, time.Until(begin.Add(2*time.Second)), func() (bool, error) {
		_, _, at := plain.state()
		return !at.IsZero(), nil
	})
	if closing != nil && !errors.Is(closing, errTimedOut) {
		return closing
	}
	p.add(p.closedRow(s, version, plain, begin))
	before, _, _ := tunnelled.state()
	if err := sleep(ctx, time.Second); err != nil {
		return err
	}
	p.add(p.stayedRow(s, version, tunnelled, before))
	return nil
}

func (p *player) closedRow(s step, version int, h *held, begin time.Time) Row {
	row := Row{Step: s.name, IP: version, From: legacyApp, To: productpage + ":9080", Expected: "closed within 1s",
		CarriedBy: byPlaintext, Link: "not captured", Attempts: 1}
	_, failure, at := h.state()
	row.Got, row.Took = "still open", time.Since(begin)
	if !at.IsZero() {
		row.Took = at.Sub(begin)
		row.Got = "closed: " + gotOf(failure)
	}
	if at.IsZero() || row.Took > time.Second {
		row.problem("want it closed within 1s of the change")
	}
	var err error
	if row.DecidedBy, err = p.mesh.policyInForce(productpage, 9080); err != nil {
		row.problem("%v", err)
	}
	row.OK = len(row.Problems) == 0
	return row
}

func (p *player) stayedRow(s step, version int, h *held, before int) Row {
	row := Row{Step: s.name, IP: version, From: nginx, To: productpage + ":9080 (Service)", Expected: "stays, " + byMTLS,
		Link: "not captured", Attempts: 1, Took: time.Second}
	good, failure, at := h.state()
	row.Got = fmt.Sprintf("stays, %d requests", good)
	if !at.IsZero() || good <= before {
		row.Got = "lost"
		row.problem("want it to stay open, got %s (%s)", gotOf(failure), failure.Error)
	}
	p.carrier(&row, h)
	row.OK = len(row.Problems) == 0
	return row
}

// carrier fills in how the held connection is carried, which has to be mTLS.
func (p *player) carrier(row *Row, h *held) {
	h.mu.Lock()
	attempt := Attempt{OK: true, Local: h.local}
	h.mu.Unlock()
	c := mtls(row.From, productpage, 9080, "")
	e, err := p.mesh.tunnelEvidence(c, attempt, time.Time{}, row.IP)
	if err != nil {
		row.problem("%v", err)
	}
	row.CarriedBy, row.Source, row.Destination, row.DecidedBy = e.carried, e.source, e.destination, e.decided
	if e.carried != byMTLS {
		row.problem("carried by %q, want %s", e.carried, byMTLS)
	}
}

// playRotation keeps a connection open and makes new ones until both sides' certificates were renewed twice.
func playRotation(ctx context.Context, p *player, s step) error {
	var kept []*held
	for _, version := range p.versions {
		h, err := p.mesh.hold(ctx, nginx, netip.AddrPortFrom(serviceAddress(productpage, version), 9080), 100*time.Millisecond)
		if err != nil {
			return err
		}
		defer h.stop()
		kept = append(kept, h)
	}
	begin := time.Now()
	rows := make([]Row, len(p.versions))
	for second := 1; ; second++ {
		if err := sleep(ctx, time.Until(begin.Add(time.Duration(second)*time.Second))); err != nil {
			return err
		}
		for i, version := range p.versions {
			if err := p.newConnection(ctx, s, version, &rows[i]); err != nil {
				return err
			}
		}
		renewals, err := p.mesh.renewals(begin)
		if err != nil {
			return err
		}
		if second%5 == 0 {
			p.progress(fmt.Sprintf("rotation: %d s, %d renewals", second, renewals))
		}
		if done := renewals >= 2 && time.Since(begin) > svidLife; done || time.Since(begin) > 3*svidLife {
			for i, h := range kept {
				p.add(p.keptRow(s, p.versions[i], h, renewals, time.Since(begin)))
				rows[i].Got = fmt.Sprintf("%d of %d ok, slowest %s", rows[i].Attempts-len(rows[i].Problems), rows[i].Attempts,
					rows[i].Took.Round(time.Millisecond))
				rows[i].OK = len(rows[i].Problems) == 0
				p.add(rows[i])
			}
			return nil
		}
	}
}

// newConnection makes a request and adds its outcome to the row of all of them.
func (p *player) newConnection(ctx context.Context, s step, version int, all *Row) error {
	one, err := p.attempt(ctx, s, mtls(nginx, productpage, 9080, "default/default-strict"), version)
	if err != nil {
		return err
	}
	attempts, problems, slowest := all.Attempts+1, all.Problems, max(all.Took, one.Took)
	if !one.OK {
		problems = append(problems, fmt.Sprintf("connection %d: %v", attempts, one.Problems))
	}
	*all = one
	all.Expected, all.Attempts, all.Problems, all.Took = "new each second: ok", attempts, problems, slowest
	return nil
}

func (p *player) keptRow(s step, version int, h *held, renewals int, took time.Duration) Row {
	row := Row{Step: s.name, IP: version, From: nginx, To: productpage + ":9080 (Service)", Expected: "stays over 2 renewals",
		Link: "not captured", Attempts: 1, Took: took}
	good, failure, at := h.state()
	h.mu.Lock()
	row.Got = fmt.Sprintf("stays, %d requests, %d renewals, slowest %s", good, renewals, h.slowest.Round(time.Millisecond))
	h.mu.Unlock()
	if !at.IsZero() {
		row.Got = "lost: " + gotOf(failure)
		row.problem("lost after %d requests: %s", good, failure.Error)
	}
	if renewals < 2 {
		row.problem("saw %d renewals of both certificates, want 2", renewals)
	}
	p.carrier(&row, h)
	row.OK = len(row.Problems) == 0
	return row
}

// renewals is how often since begin both ends of the connection got a new certificate.
func (m *Mesh) renewals(begin time.Time) (int, error) {
	fewest := -1
	for _, ref := range []string{nginx, productpage} {
		count := 0
		for _, n := range m.nodes {
			if n.lab != m.pods[ref].Node {
				continue
			}
			lines, err := n.agent.log.read()
			if err != nil {
				return 0, err
			}
			for _, l := range lines {
				if l.get("msg") == "SVID issued" && l.get("identity") == identityOf(ref) && l.when().After(begin) {
					count++
				}
			}
		}
		if fewest < 0 || count < fewest {
			fewest = count
		}
	}
	return fewest, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
