package hbone

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Stats counts the bytes of one relay: Sent from the application into the tunnel, Received from
// the tunnel to the application.
type Stats struct{ Sent, Received uint64 }

// Stream is one CONNECT stream. Relay owns its application's socket and is the only one to close
// it: whoever aborts the stream sets a deadline in the past, which wakes everyone at work on it.
type Stream struct {
	c  *Conn
	id uint32
	rx receiver

	sent atomic.Uint64 // bytes of the application; written by the pump alone

	wake   chan struct{} // room to send, or the end; one token
	gone   chan struct{} // closed by abort
	cancel context.CancelCauseFunc

	// guarded by Conn.mu
	app        *net.TCPConn
	sendWindow int64
	waiting    bool   // in Conn.waiters
	bulkGen    uint64 // batch that holds bulk of this stream
	err        error  // why it was aborted
	sendEnd    bool   // we sent END_STREAM
	recvEnd    bool   // the peer did
	stop       bool   // the peer wants no more bytes, and has sent all of its own
	closed     bool   // ended on the wire: not active any more

	// of a client
	answered chan struct{}
	status   int
}

// past is a deadline that has gone by.
var past = time.Unix(1, 0)

var errStop = errors.New("peer takes no more")

// newStream registers a stream. Conn.mu is held.
func (c *Conn) newStream(id uint32) *Stream {
	s := &Stream{c: c, id: id, wake: make(chan struct{}, 1), gone: make(chan struct{}), sendWindow: c.initialWindow}
	s.rx.init(c.cfg)
	c.streams[id] = s
	c.active++
	return s
}

func (s *Stream) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// sendErr says why nothing more may be sent. Conn.mu is held.
func (s *Stream) sendErr() error {
	if s.err == nil && s.stop {
		return errStop
	}
	return s.err
}

// end marks the stream as ended on the wire once both directions are. Conn.mu is held.
func (s *Stream) end() {
	if s.closed || s.err == nil && !(s.sendEnd && s.recvEnd) {
		return
	}
	s.closed = true
	s.c.active--
	s.c.endIfDrained()
}

// abort ends the stream at once and wakes everyone who waits on it. Conn.mu is held.
func (s *Stream) abort(err error) {
	if s.err != nil {
		return
	}
	s.err = err
	close(s.gone)
	if s.cancel != nil {
		s.cancel(err)
	}
	s.poke()
	if s.app != nil {
		s.app.SetDeadline(past) // fails only on a closed socket
	}
	s.end()
}

// reset aborts the stream and tells the peer. Conn.mu is not held.
func (s *Stream) reset(code ErrCode, cause error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.resetLocked(code, cause)
	s.c.flush(false)
}

func (s *Stream) resetLocked(code ErrCode, cause error) {
	if s.err != nil {
		return
	}
	if !s.closed {
		s.c.ordered(s, appendUint32Frame(nil, frameReset, s.id, uint32(code)))
	}
	s.abort(&ResetError{Code: code, Cause: cause})
}

// Cancel resets a stream that is not going to be relayed.
func (s *Stream) Cancel() {
	s.reset(CodeCancel, nil)
	s.forget()
}

// forget ends the receiving side and takes the stream off the connection.
func (s *Stream) forget() {
	s.rx.kill(s.c)
	s.c.mu.Lock()
	delete(s.c.streams, s.id)
	s.c.noteDelivered()
	s.c.mu.Unlock()
}

// Relay moves bytes between app and the stream until both directions have ended, and closes app.
// FIN and END_STREAM translate into each other per direction. A RST of app becomes
// RST_STREAM(CANCEL), a RST_STREAM becomes a RST at app. The error is nil if both directions ended
// with FIN.
func (s *Stream) Relay(app *net.TCPConn) (Stats, error) {
	err := s.relay(app)
	s.forget()
	s.c.mu.Lock()
	if err == nil {
		err = s.err
	}
	s.c.mu.Unlock()
	if err != nil {
		app.SetLinger(0) // fails only on a closed socket
	}
	return s.Stats(), errors.Join(err, ignoreClosed(app.Close()))
}

// Stats returns what has been relayed so far.
func (s *Stream) Stats() Stats {
	s.rx.mu.Lock()
	defer s.rx.mu.Unlock()
	return Stats{Sent: s.sent.Load(), Received: s.rx.received}
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (s *Stream) relay(app *net.TCPConn) error {
	raw, err := app.SyscallConn()
	if err != nil {
		s.reset(CodeInternal, err)
		return err
	}
	s.c.mu.Lock()
	s.app, err = app, s.err
	s.c.mu.Unlock()
	if err != nil {
		return err
	}
	s.rx.attach(s, app, raw)
	s.pump(raw)
	select {
	case <-s.rx.done:
	case <-s.gone:
	}
	return nil
}

// pump carries bytes from the application to the peer until either ends.
func (s *Stream) pump(raw syscall.RawConn) {
	p := &appReader{pools: s.c.pools}
	p.fn = p.ready
	for {
		s.c.mu.Lock()
		room, err := s.c.room(s)
		s.c.mu.Unlock()
		if err != nil {
			return
		}
		switch err := p.read(raw, room); {
		case err == io.EOF:
			s.sendFIN()
			return
		case err != nil:
			s.appFailed(err)
			return
		}
		if err := s.send(p.block, p.n); err != nil {
			return
		}
		s.sent.Add(uint64(p.n))
	}
}

// appFailed passes on the application's RST, unless it was us who ended the reading.
func (s *Stream) appFailed(err error) {
	s.c.mu.Lock()
	stopped := s.stop
	s.c.mu.Unlock()
	if !stopped {
		s.reset(CodeCancel, err)
	}
}

func (s *Stream) sendFIN() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.err != nil || s.stop {
		return
	}
	s.c.ordered(s, appendFrame(nil, frame{typ: frameData, flags: flagEndStream, stream: s.id}))
	s.sendEnd = true
	s.end()
	s.c.flush(true)
}

// send queues n bytes of block, which it takes over. There was room for them when they were read;
// when other streams took it meanwhile they go out in pieces.
func (s *Stream) send(block *[]byte, n int) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for off := 0; off < n; {
		room, err := c.room(s)
		if err != nil {
			c.pools.putBlock(block)
			return err
		}
		if off == 0 && n <= room {
			c.data(s, block, n)
			break
		}
		piece := c.pools.block(true)
		m := copy((*piece)[headerLen:], (*block)[headerLen+off:headerLen+min(n, off+room)])
		c.data(s, piece, m)
		if off += m; off == n {
			c.pools.putBlock(block)
		}
	}
	c.flush(true)
	return nil
}

// appReader reads an application's socket into blocks that are taken only once it is readable.
type appReader struct {
	pools *pools
	fn    func(fd uintptr) bool
	room  int
	big   bool // the last read filled its block: take big ones
	block *[]byte
	n     int
	err   error
}

// read waits for at most room bytes, and leaves them in block behind room for a frame header.
func (p *appReader) read(raw syscall.RawConn, room int) error {
	p.room, p.block, p.n, p.err = room, nil, 0, nil
	if err := raw.Read(p.fn); err != nil {
		return err
	}
	return p.err
}

func (p *appReader) ready(fd uintptr) bool {
	b := p.pools.block(p.big)
	want := min(len(*b)-headerLen, p.room)
	n, err := ignoringEINTR(func() (int, error) { return unix.Read(int(fd), (*b)[headerLen:headerLen+want]) })
	if n > 0 {
		p.big = n == want && (p.big || want == smallBlock-headerLen) || p.big && n > smallBlock
		p.block, p.n = b, n
		return true
	}
	p.pools.putBlock(b)
	if err == unix.EAGAIN {
		return false
	}
	if p.err = err; err == nil {
		p.err = io.EOF
	}
	return true
}
