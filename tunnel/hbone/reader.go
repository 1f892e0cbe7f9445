package hbone

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"
)

// reader parses what the peer sends. It belongs to the connection's reading goroutine, which
// never waits for anything but the peer.
type reader struct {
	c     *Conn
	phase phase
	skip  int    // of the client's preface
	head  []byte // of a frame, or a small frame's payload
	f     frame
	left  int // of the frame's payload, padding excluded
	pad   int

	header  headerBlock
	avail   int // the connection's window
	unacked int
	settled bool // first frame seen

	data                     *Stream // whose DATA is being read; nil: nobody's
	iov                      [][]byte
	base                     [][]byte
	bytes                    int
	settings, pings, empties rate
}

type phase uint8

const (
	readPreface phase = iota
	readHead
	readPadLength
	readData
	readPadding
	readPayload
)

// keepHead is how large a buffer for small frames an idle connection keeps.
const keepHead = 512

// gatherMost is how many pieces of one stream's DATA are written at once.
const gatherMost = 64

func newReader(c *Conn) *reader {
	r := &reader{c: c, phase: readHead, avail: c.cfg.ConnWindow}
	r.header.init(c)
	if !c.client {
		r.phase = readPreface
	}
	r.base = make([][]byte, 0, gatherMost)
	r.iov = r.base
	return r
}

// read is the reading goroutine. When the connection has failed it goes on to swallow what comes,
// so that closing the socket does not reset it before the peer has read our GOAWAY.
func (c *Conn) read() {
	defer close(c.readerDone)
	r := newReader(c)
	defer r.header.stop()
	err := r.run(r.feed)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = fmt.Errorf("%w: %w", errPeerClosed, err)
	}
	c.fail(err)
	if _, ok := err.(*ProtocolError); ok {
		r.run(func([]byte) error { return nil }) // ends with the peer, or teardown's deadline
	}
}

// run reads until an error. A buffer is held only while there are bytes for it.
func (r *reader) run(feed func([]byte) error) error {
	c := r.c
	for {
		buf := c.pools.plain.Get().(*[]byte)
		n, err := c.records.readBatch(*buf)
		var bad error
		if n > 0 {
			c.heard.Store(true)
			bad = feed((*buf)[:n])
			r.deliver()
		}
		c.pools.plain.Put(buf)
		if bad != nil {
			return bad
		}
		r.endBatch()
		if err == nil && n == 0 {
			err = c.records.wait()
		}
		if err != nil {
			return err
		}
	}
}

// endBatch gives back the connection's window and writes what the batch has caused.
func (r *reader) endBatch() {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	if r.unacked >= r.c.cfg.ConnWindow/4 {
		r.c.control(appendUint32Frame(nil, frameWindowUpdate, 0, uint32(r.unacked)))
		r.avail += r.unacked
		r.unacked = 0
	}
	r.c.flush(false)
}

func (r *reader) feed(p []byte) error {
	for len(p) > 0 {
		var n int
		var err error
		switch r.phase {
		case readPreface:
			n, err = r.preface(p)
		case readHead:
			n, err = r.frameHead(p)
		case readPadLength:
			n, err = 1, r.padLength(p[0])
		case readData:
			n = min(len(p), r.left)
			r.gather(p[:n])
			r.left -= n
		case readPadding:
			n = min(len(p), r.pad)
			r.pad -= n
		case readPayload:
			n = min(len(p), r.left)
			r.head = append(r.head, p[:n]...)
			r.left -= n
		}
		if err == nil {
			err = r.advance()
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// advance goes from a phase that is complete to the next.
func (r *reader) advance() error {
	if r.phase == readData && r.left == 0 {
		r.phase = readPadding
	}
	if r.phase == readPadding && r.pad == 0 {
		return r.endData()
	}
	if r.phase == readPayload && r.left == 0 {
		r.phase = readHead
		payload := r.head
		if r.head = r.head[:0]; cap(payload) > keepHead {
			r.head = nil
		}
		return r.control(payload)
	}
	return nil
}

func (r *reader) preface(p []byte) (int, error) {
	n := min(len(p), len(clientPreface)-r.skip)
	if string(p[:n]) != clientPreface[r.skip:r.skip+n] {
		return n, protocolError(CodeProtocol, "not an HTTP/2 client preface")
	}
	if r.skip += n; r.skip == len(clientPreface) {
		r.phase = readHead
	}
	return n, nil
}

func (r *reader) frameHead(p []byte) (int, error) {
	n := min(len(p), headerLen-len(r.head))
	if r.head = append(r.head, p[:n]...); len(r.head) < headerLen {
		return n, nil
	}
	r.f = parseFrame(r.head)
	r.head = r.head[:0]
	return n, r.begin()
}

// begin checks a frame by its header and chooses how its payload is read.
func (r *reader) begin() error {
	f := r.f
	if !r.settled && (f.typ != frameSettings || f.has(flagAck)) {
		return protocolError(CodeProtocol, "first frame is of type %d, not SETTINGS", f.typ)
	}
	r.settled = true
	if err := f.check(r.c.cfg.MaxFrame); err != nil {
		return err
	}
	if err := r.header.expects(f); err != nil {
		return err
	}
	if f.typ == frameData {
		return r.beginData()
	}
	if f.length > r.payloadLimit() {
		return protocolError(CodeCalm, "frame of type %d with %d bytes", f.typ, f.length)
	}
	if f.typ == frameHeaders {
		r.header.begin(f)
	}
	r.phase, r.left = readPayload, f.length
	return nil
}

// payloadLimit bounds what is gathered of a frame before it is understood.
func (r *reader) payloadLimit() int {
	switch r.f.typ {
	case frameHeaders, frameContinuation:
		return r.c.cfg.MaxHeaderBytes + 256 + 6 // padding and priority
	}
	return minMaxFrame
}

func (r *reader) beginData() error {
	f := r.f
	r.unacked += f.length
	if r.avail -= f.length; r.avail < 0 {
		return protocolError(CodeFlowControl, "connection window exceeded")
	}
	if f.length == 0 && !f.has(flagEndStream) && r.empties.over(r.c.cfg.MaxResets) {
		return protocolError(CodeCalm, "too many empty frames")
	}
	if err := r.chooseStream(f); err != nil {
		return err
	}
	r.phase, r.left, r.pad = readData, f.length, 0
	if f.has(flagPadded) {
		if f.length == 0 {
			return protocolError(CodeFrameSize, "padded DATA without padding length")
		}
		r.phase = readPadLength
	}
	return nil
}

// chooseStream finds whom the frame's DATA is for; DATA for a stream that was reset is for nobody.
func (r *reader) chooseStream(f frame) error {
	c := r.c
	c.mu.Lock()
	s := c.streams[f.stream]
	idle := c.idle(f.stream)
	early := c.client && s != nil && s.status == 0
	over := s != nil && (s.recvEnd || early)
	if over && s.err == nil {
		s.resetLocked(CodeStreamClosed, protocolError(CodeStreamClosed, "DATA before the answer or after END_STREAM"))
	}
	if over || s != nil && s.err != nil {
		s = nil
	}
	c.mu.Unlock()
	if idle {
		return protocolError(CodeProtocol, "DATA on idle stream %d", f.stream)
	}
	if s != r.data {
		r.deliver()
		r.data = s
	}
	if s == nil {
		return nil
	}
	if err := s.rx.announce(f.length); err != nil {
		s.reset(CodeFlowControl, err)
		r.deliver()
		r.data = nil
	}
	return nil
}

func (r *reader) padLength(n byte) error {
	if int(n) >= r.f.length {
		return protocolError(CodeProtocol, "padding of %d in a frame of %d bytes", n, r.f.length)
	}
	r.phase, r.pad, r.left = readData, int(n), r.f.length-1-int(n)
	if s := r.data; s != nil {
		s.credit(s.rx.padding(r.c.cfg.Budget, 1+int(n)))
	}
	return nil
}

// gather keeps a piece of DATA for the next deliver: p is valid until then.
func (r *reader) gather(p []byte) {
	if r.data == nil || len(p) == 0 {
		return
	}
	r.iov = append(r.iov, p)
	if r.bytes += len(p); len(r.iov) == gatherMost {
		r.deliver()
	}
}

// deliver hands the gathered DATA to its stream.
func (r *reader) deliver() {
	s, v, n := r.data, r.iov, r.bytes
	r.iov, r.bytes = r.base[:0], 0
	if s == nil || n == 0 {
		return
	}
	credit, err := s.rx.deliver(s, v, n)
	if err == errBudget {
		s.reset(CodeCalm, err)
		return
	}
	if err != nil {
		s.reset(CodeCancel, err)
		return
	}
	s.credit(credit)
}

func (r *reader) endData() error {
	r.phase = readHead
	if !r.f.has(flagEndStream) || r.data == nil {
		return nil
	}
	r.deliver()
	r.c.endReceive(r.data)
	r.data = nil
	return nil
}

// endReceive notes that the peer has sent its last byte.
func (c *Conn) endReceive(s *Stream) {
	c.mu.Lock()
	s.recvEnd = true
	s.end()
	c.mu.Unlock()
	s.rx.finish()
}

// idle reports whether the stream has never been open. Conn.mu is held.
func (c *Conn) idle(id uint32) bool {
	if c.client {
		return id%2 == 0 || id >= c.nextID
	}
	return id%2 == 0 || id > c.peerLast
}

// rate counts events of the current second.
type rate struct {
	second int64
	n      int
}

func (r *rate) over(limit int) bool {
	if now := time.Now().Unix(); now != r.second {
		r.second, r.n = now, 0
	}
	r.n++
	return r.n > limit
}

func uint32At(b []byte) uint32 { return binary.BigEndian.Uint32(b) }
