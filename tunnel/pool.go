package tunnel

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/tunnel/hbone"
)

const (
	poolConns    = 4
	poolStreams  = 100
	poolBusy     = 8 // streams on the least busy connection from which another is made
	poolIdle     = 5 * time.Minute
	poolSweep    = 15 * time.Second
	poolDials    = 256 // at once, in all
	poolAttempts = 3
)

// poolKey says which streams may share a connection. The workload is in it because its sockets are of its
// network namespace: an address may be given to another pod.
type poolKey struct {
	workload            uint64
	source, destination spiffeid.ID
	address             netip.AddrPort
	sourceIP            netip.Addr
}

// pooled is a connection of the pool. streams and idle are guarded by pool.mu.
type pooled struct {
	conn    *hbone.Conn
	proof   *proof
	revoked atomic.Bool // what was proved does not hold any more
	streams int
	idle    time.Time
}

func (p *pooled) usable(now time.Time) bool {
	return p.conn.Usable() && now.Before(p.proof.expires) && !p.revoked.Load()
}

type poolEntry struct {
	conns   []*pooled
	dialing int
	failed  uint64 // how many dials have failed
	err     error  // of the last of them
	changed chan struct{}
}

// pool keeps HBONE connections and finds one for each stream. Connections are made in goroutines of the
// pool: whoever waits takes the first one with room, be it new or freed by another stream.
type pool struct {
	ctx    context.Context
	dial   dialPool
	stands func(*proof) error
	dials  chan struct{}
	wg     sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	entries map[poolKey]*poolEntry
}

type dialPool func(context.Context, poolKey) (*hbone.Conn, *proof, error)

func newPool(ctx context.Context, dial dialPool, stands func(*proof) error) *pool {
	return &pool{ctx: ctx, dial: dial, stands: stands, dials: make(chan struct{}, poolDials), entries: map[poolKey]*poolEntry{}}
}

// connect opens a stream. release must be called once the stream has ended.
func (p *pool) connect(ctx context.Context, key poolKey, r hbone.Request) (s *hbone.Stream, release func(), err error) {
	for attempts := 0; attempts < poolAttempts; {
		var c *pooled
		if c, err = p.acquire(ctx, key); err != nil {
			return nil, nil, err
		}
		if !p.trusts(c) {
			p.release(key, c)
			continue
		}
		attempts++
		s, err = c.conn.Connect(ctx, r)
		if err == nil {
			return s, sync.OnceFunc(func() { p.release(key, c) }), nil
		}
		p.release(key, c)
		if !unserved(err) {
			break
		}
	}
	return nil, nil, err
}

// unserved reports whether the peer has not seen the request, or says so: another connection may carry it.
func unserved(err error) bool {
	refused := (*hbone.ResetError)(nil)
	return errors.Is(err, hbone.ErrGoAway) || errors.Is(err, hbone.ErrClosed) || errors.Is(err, hbone.ErrStreams) ||
		errors.As(err, &refused) && refused.Remote && refused.Code == hbone.CodeRefusedStream
}

// trusts asks whether a connection may carry a new stream. Verifying a chain takes time: the lock is not held.
func (p *pool) trusts(c *pooled) bool {
	if p.stands(c.proof) != nil {
		c.revoked.Store(true)
	}
	return !c.revoked.Load()
}

// recheck ends the connections that carry no new streams because less is trusted than before, and returns how many.
func (p *pool) recheck() (ended int) {
	p.mu.Lock()
	var all []*pooled
	for _, e := range p.entries {
		all = append(all, e.conns...)
	}
	p.mu.Unlock()
	for _, c := range all {
		if !p.trusts(c) {
			ended++
		}
	}
	if ended > 0 {
		p.retire(p.sweep(time.Now()))
	}
	return ended
}

func (p *pool) acquire(ctx context.Context, key poolKey) (*pooled, error) {
	var failed uint64
	var seen *poolEntry
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, net.ErrClosed
		}
		e := p.entries[key]
		if e == nil {
			e = &poolEntry{changed: make(chan struct{})}
			p.entries[key] = e
		}
		if e != seen {
			seen, failed = e, e.failed
		}
		if c := p.take(key, e); c != nil {
			p.mu.Unlock()
			return c, nil
		}
		if e.failed > failed && e.dialing == 0 {
			err := e.err
			p.mu.Unlock()
			return nil, err
		}
		p.grow(key, e)
		changed := e.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// take finds a connection with room. When even the least busy one has enough to do, another is made
// meanwhile. The caller holds the lock.
func (p *pool) take(key poolKey, e *poolEntry) *pooled {
	var best *pooled
	now := time.Now()
	for _, c := range e.conns {
		if c.usable(now) && c.streams < min(poolStreams, c.conn.MaxStreams()) && (best == nil || c.streams < best.streams) {
			best = c
		}
	}
	if best == nil {
		return nil
	}
	if best.streams >= poolBusy && e.dialing == 0 {
		p.grow(key, e)
	}
	best.streams++
	return best
}

// grow makes one connection more, within the bound. One dial at a time and key: a crowd that arrives at
// once would otherwise make four where one is enough. The caller holds the lock.
func (p *pool) grow(key poolKey, e *poolEntry) {
	now := time.Now()
	usable := 0
	for _, c := range e.conns {
		if c.usable(now) {
			usable++
		}
	}
	if e.dialing > 0 || usable >= poolConns {
		return
	}
	e.dialing++
	p.wg.Go(func() { p.add(key, e) })
}

func (p *pool) add(key poolKey, e *poolEntry) {
	conn, proved, err := p.limitedDial(key)
	p.mu.Lock()
	e.dialing--
	unwanted := p.closed || p.entries[key] != e
	if err != nil {
		e.failed++
		e.err = err
	} else if !unwanted {
		e.conns = append(e.conns, &pooled{conn: conn, proof: proved, idle: time.Now()})
	}
	p.notify(e)
	p.mu.Unlock()
	if err == nil && unwanted {
		_ = conn.Close()
	}
}

func (p *pool) limitedDial(key poolKey) (*hbone.Conn, *proof, error) {
	select {
	case p.dials <- struct{}{}:
		defer func() { <-p.dials }()
	case <-p.ctx.Done():
		return nil, nil, p.ctx.Err()
	}
	return p.dial(p.ctx, key)
}

func (p *pool) release(key poolKey, c *pooled) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.streams--
	c.idle = time.Now()
	if e := p.entries[key]; e != nil {
		p.notify(e)
	}
}

func (p *pool) notify(e *poolEntry) {
	close(e.changed)
	e.changed = make(chan struct{})
}

// run ends connections that are idle, expired or broken.
func (p *pool) run(ctx context.Context) {
	tick := time.NewTicker(poolSweep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			p.retire(p.sweep(now))
		}
	}
}

// sweep takes out the connections that are of no more use.
func (p *pool) sweep(now time.Time) []*hbone.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	var done []*hbone.Conn
	for key, e := range p.entries {
		e.conns = slices.DeleteFunc(e.conns, func(c *pooled) bool {
			drop := !c.usable(now) || c.streams == 0 && now.Sub(c.idle) >= poolIdle
			if drop {
				done = append(done, c.conn)
			}
			return drop
		})
		if len(e.conns) == 0 && e.dialing == 0 {
			// Whoever waits on it starts again with a new entry.
			p.notify(e)
			delete(p.entries, key)
		}
	}
	return done
}

// size returns how many connections there are, and streams on them.
func (p *pool) size() (connections, streams int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.entries {
		connections += len(e.conns)
		for _, c := range e.conns {
			streams += c.streams
		}
	}
	return connections, streams
}

// retire lets the streams that are left finish.
func (p *pool) retire(conns []*hbone.Conn) {
	for _, c := range conns {
		p.wg.Go(func() {
			_ = c.Shutdown(p.ctx)
			_ = c.Close()
		})
	}
}

// forget gives up the connections of a workload that is gone.
func (p *pool) forget(workload uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, e := range p.entries {
		if key.workload != workload {
			continue
		}
		for _, c := range e.conns {
			p.retire([]*hbone.Conn{c.conn})
		}
		p.notify(e)
		delete(p.entries, key)
	}
}

// close ends every connection. The pool's context has ended before.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	for key, e := range p.entries {
		for _, c := range e.conns {
			p.retire([]*hbone.Conn{c.conn})
		}
		p.notify(e)
		delete(p.entries, key)
	}
	p.mu.Unlock()
	p.wg.Wait()
}
