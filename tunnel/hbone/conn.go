package hbone

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2/hpack"
)

// lingerTimeout is how long a connection that ends waits for its last bytes to be written and for
// the peer to end as well. Closing at once would make the kernel reset, and the peer lose GOAWAY.
const lingerTimeout = time.Second

// Conn is an HBONE connection: CONNECT streams over one TLS connection. All methods may be used
// concurrently.
type Conn struct {
	client  bool
	cfg     Config
	tcp     *net.TCPConn
	tls     *tls.Conn
	records recordLayer
	pools   *pools
	handler Handler
	log     *slog.Logger

	ctx        context.Context // of the handlers; ends with the connection
	cancel     context.CancelCauseFunc
	wg         sync.WaitGroup // reader, handlers, flushers that were handed over, teardown
	failed     chan struct{}  // closed when err is set
	readerDone chan struct{}
	delivered  chan struct{} // closed when err is set and no stream is left
	heard      atomic.Bool   // bytes came since the last keepalive

	resets rate // of the reader

	mu             sync.Mutex
	err            error
	goAwayErr      error              // of the peer's GOAWAY, if it complained
	streams        map[uint32]*Stream // until their sockets are closed
	active         int                // open on the wire
	nextID         uint32             // of our next stream
	peerLast       uint32             // highest stream of the peer
	peerStreams    int                // how many streams the peer allows
	goAwaySent     bool               // the final one
	closing        bool               // no new streams, either side's wish
	sendWindow     int64
	initialWindow  int64 // the peer's, for new streams
	peerMaxFrame   int
	waiters        []*Stream
	lanes          lanes
	flushing       bool
	closed         bool // nothing is written any more
	flushed        *sync.Cond
	enc            *hpack.Encoder
	encBuf         bytes.Buffer
	pinging        bool
	silentSince    time.Time
	keepalive      *time.Timer
	prefaceTimer   *time.Timer
	shutdownPinged bool
}

func newConn(ctx context.Context, tcp *net.TCPConn, cfg Config, client bool) *Conn {
	c := &Conn{
		client: client, cfg: cfg, tcp: tcp, pools: cfg.Budget.pools, log: cfg.Logger,
		failed: make(chan struct{}), readerDone: make(chan struct{}), delivered: make(chan struct{}),
		streams: make(map[uint32]*Stream), nextID: 1, peerStreams: assumedLimit,
		sendWindow: defaultWindow, initialWindow: defaultWindow, peerMaxFrame: minMaxFrame,
	}
	c.ctx, c.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	c.flushed = sync.NewCond(&c.mu)
	c.enc = hpack.NewEncoder(&c.encBuf)
	c.lanes.gen = 1
	return c
}

// handshake makes the TLS connection. On failure tcp is closed.
func (c *Conn) handshake(ctx context.Context, newTLS func(net.Conn) *tls.Conn) error {
	gather, err := newGatherConn(c.tcp, c.pools)
	if err != nil {
		return errors.Join(fmt.Errorf("HBONE socket: %w", err), c.tcp.Close())
	}
	c.tune()
	c.tls = newTLS(gather)
	ctx, cancel := context.WithTimeout(ctx, c.cfg.HandshakeTimeout)
	defer cancel()
	err = c.tls.HandshakeContext(ctx)
	if err == nil {
		err = checkHandshake(c.tls.ConnectionState())
	}
	if err != nil {
		c.tcp.Close()
		return fmt.Errorf("TLS handshake with %s: %w", c.tcp.RemoteAddr(), err)
	}
	gather.start()
	c.records = &tlsRecords{Conn: c.tls, gather: gather}
	return nil
}

// tune sets what HBONE peers set. A socket that refuses it works none the less.
func (c *Conn) tune() {
	err := errors.Join(c.tcp.SetNoDelay(true), c.tcp.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable: true, Idle: 180 * time.Second, Interval: 180 * time.Second, Count: 9}))
	if err != nil {
		c.log.Debug("HBONE socket options", "error", err)
	}
}

// start sends our preface and begins to serve.
func (c *Conn) start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client {
		c.control([]byte(clientPreface))
	}
	c.control(appendSettings(nil, c.settings()))
	if c.cfg.ConnWindow > defaultWindow {
		c.control(appendUint32Frame(nil, frameWindowUpdate, 0, uint32(c.cfg.ConnWindow-defaultWindow)))
	}
	c.silentSince = time.Now()
	c.prefaceTimer = time.AfterFunc(c.cfg.PrefaceTimeout, func() {
		c.fail(protocolError(CodeSettingsTimeout, "no preface within %s", c.cfg.PrefaceTimeout))
	})
	c.keepalive = time.AfterFunc(c.cfg.PingInterval, c.tick)
	c.wg.Go(c.read)
	c.flush(false)
}

func (c *Conn) settings() []setting {
	s := []setting{
		{settingWindow, uint32(c.cfg.StreamWindow)},
		{settingMaxFrame, uint32(c.cfg.MaxFrame)},
		{settingMaxHeaderList, uint32(c.cfg.MaxHeaderBytes)},
		{settingMaxStreams, uint32(c.cfg.MaxStreams)},
	}
	if c.client {
		s = append(s, setting{settingPush, 0})
	}
	return s
}

// tick sends a PING and ends a connection that has been silent for too long. Any byte counts as a
// sign of life: an answer may queue behind megabytes on a slow link.
func (c *Conn) tick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	now := time.Now()
	if c.heard.Swap(false) {
		c.silentSince = now
	}
	if c.pinging && now.Sub(c.silentSince) >= c.cfg.PingTimeout {
		c.failLocked(fmt.Errorf("HBONE peer silent for %s", c.cfg.PingTimeout))
		return
	}
	if !c.pinging {
		c.pinging = true
		c.ping(pingKeepalive)
	}
	c.keepalive.Reset(c.cfg.PingInterval)
}

// fail ends the connection with err: open streams are aborted, a GOAWAY is sent.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failLocked(err)
}

func (c *Conn) failLocked(err error) {
	if c.err != nil {
		return
	}
	if c.goAwayErr != nil && (errors.Is(err, errPeerClosed) || errors.Is(err, ErrClosed)) {
		err = c.goAwayErr
	}
	c.err = err
	c.keepalive.Stop()
	c.prefaceTimer.Stop()
	c.cancel(err)
	close(c.failed)
	for _, s := range c.streams {
		if !s.closed { // one that ended on the wire still delivers what it has
			s.abort(err)
		}
	}
	code := CodeNo
	if pe := (*ProtocolError)(nil); errors.As(err, &pe) && !pe.Remote {
		code = pe.Code
	}
	c.goAway(c.peerLast, code)
	c.noteDelivered()
	c.wg.Go(c.teardown)
}

func (c *Conn) noteDelivered() {
	if c.err == nil || len(c.streams) > 0 {
		return
	}
	select {
	case <-c.delivered:
	default:
		close(c.delivered)
	}
}

// teardown writes what is left, ends our direction, and gives the peer a moment to end its own.
func (c *Conn) teardown() {
	if err := c.tcp.SetDeadline(time.Now().Add(lingerTimeout)); err != nil {
		c.log.Debug("HBONE deadline", "error", err)
	}
	c.mu.Lock()
	for c.flushing {
		c.flushed.Wait()
	}
	c.flush(true)
	for c.flushing {
		c.flushed.Wait()
	}
	broken := c.closed
	c.closed = true
	c.mu.Unlock()
	if !broken {
		if err := c.records.closeWrite(); err != nil {
			c.log.Debug("HBONE close_notify", "error", err)
		}
		<-c.readerDone
	}
	if err := c.tcp.Close(); err != nil {
		c.log.Debug("HBONE close", "error", err)
	}
}

// State returns the TLS connection's state, peer certificates included.
func (c *Conn) State() tls.ConnectionState { return c.tls.ConnectionState() }

// ActiveStreams returns the number of streams that are open on the wire.
func (c *Conn) ActiveStreams() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.active
}

// MaxStreams returns how many streams may be open: the peer's limit, capped by Config.MaxStreams.
func (c *Conn) MaxStreams() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.maxStreams()
}

func (c *Conn) maxStreams() int { return min(c.peerStreams, c.cfg.MaxStreams) }

// Usable reports whether Connect may succeed: nothing failed, neither side is going away, stream
// identifiers are left.
func (c *Conn) Usable() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.usable() == nil
}

func (c *Conn) usable() error {
	switch {
	case c.err != nil:
		return c.err
	case c.closing, c.nextID > maxWindow:
		return ErrGoAway
	}
	return nil
}

// Done is closed when the connection has ended; Err then says why.
func (c *Conn) Done() <-chan struct{} { return c.failed }

// Err returns why the connection ended, and nil while it has not. After Shutdown and Close it is
// ErrClosed.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Shutdown announces the end with GOAWAY, lets the open streams finish and closes the connection.
// When ctx ends first, the streams that are left are reset.
func (c *Conn) Shutdown(ctx context.Context) error {
	c.mu.Lock()
	c.closing = true
	if c.err == nil && !c.goAwaySent {
		c.announceEnd()
		c.flush(false)
		c.endIfDrained()
	}
	c.mu.Unlock()
	for _, done := range []<-chan struct{}{c.failed, c.delivered} {
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
	return errors.Join(ctx.Err(), c.Close())
}

// Close ends the connection now: streams are reset, their applications see a RST. It returns when
// every goroutine of the connection has ended, so a Handler must not call it.
func (c *Conn) Close() error {
	c.mu.Lock()
	c.failLocked(ErrClosed)
	for _, s := range c.streams {
		s.abort(ErrClosed)
	}
	c.mu.Unlock()
	c.wg.Wait()
	return nil
}

// endIfDrained ends a connection that is going away and has no stream left.
func (c *Conn) endIfDrained() {
	if c.closing && c.active == 0 && (c.client || c.goAwaySent) {
		c.failLocked(ErrClosed)
	}
}
