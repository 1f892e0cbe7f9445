package hbone

import (
	"errors"
	"strings"
	"time"

	"golang.org/x/net/http2/hpack"
)

// mostContinuations bounds the frames of one header block: empty ones would cost us time alone.
const mostContinuations = 32

// headerBlock gathers HEADERS and CONTINUATION and decodes them. Of the reading goroutine.
type headerBlock struct {
	c      *Conn
	dec    *hpack.Decoder
	timer  *time.Timer // ends a connection whose peer is slow to finish a block
	open   bool        // CONTINUATION must follow
	first  frame
	block  []byte
	frames int
	fields fields
	size   int
}

// fields are the header fields that mean something to us.
type fields struct {
	method, authority, status       string
	forwarded, baggage, traceparent string
	foreign                         string // a pseudo-header that CONNECT must not have
	malformed                       string
	regular                         bool // a regular field came
}

func (h *headerBlock) init(c *Conn) {
	h.c = c
	h.dec = hpack.NewDecoder(4096, h.field)
	h.dec.SetMaxStringLength(c.cfg.MaxHeaderBytes)
}

// expects refuses whatever comes between the frames of one block.
func (h *headerBlock) expects(f frame) error {
	follows := f.typ == frameContinuation
	if h.open != follows || h.open && f.stream != h.first.stream {
		return protocolError(CodeProtocol, "frame of type %d on stream %d out of place with a header block", f.typ, f.stream)
	}
	return nil
}

// begin starts the clock: the block must be complete in time.
func (h *headerBlock) begin(f frame) {
	h.first, h.frames, h.block = f, 0, h.block[:0]
	if h.timer != nil {
		h.timer.Reset(h.c.cfg.HeaderTimeout)
		return
	}
	h.timer = time.AfterFunc(h.c.cfg.HeaderTimeout, func() {
		h.c.fail(protocolError(CodeCalm, "header block not complete within %s", h.c.cfg.HeaderTimeout))
	})
}

func (h *headerBlock) stop() {
	if h.timer != nil {
		h.timer.Stop()
	}
}

// add takes a frame's payload. When the block is complete it returns done and the fields.
func (h *headerBlock) add(f frame, p []byte) (done bool, err error) {
	if f.typ == frameHeaders {
		if p, err = unwrapHeaders(f, p); err != nil {
			return false, err
		}
	}
	h.frames++
	if len(h.block)+len(p) > h.c.cfg.MaxHeaderBytes || h.frames > mostContinuations {
		return false, protocolError(CodeCalm, "header block of more than %d bytes or %d frames", h.c.cfg.MaxHeaderBytes, mostContinuations)
	}
	h.open = !f.has(flagEndHeaders)
	if h.open {
		h.block = append(h.block, p...)
		return false, nil
	}
	h.stop()
	if len(h.block) > 0 {
		p = append(h.block, p...)
		h.block = nil
	}
	return true, h.decode(p)
}

// unwrapHeaders takes off padding and priority.
func unwrapHeaders(f frame, p []byte) ([]byte, error) {
	pad := 0
	if f.has(flagPadded) {
		if len(p) == 0 {
			return nil, protocolError(CodeFrameSize, "padded HEADERS without padding length")
		}
		pad, p = int(p[0]), p[1:]
	}
	if f.has(flagPriority) {
		if len(p) < 5 {
			return nil, protocolError(CodeFrameSize, "HEADERS too short for its priority")
		}
		p = p[5:]
	}
	if pad > len(p) {
		return nil, protocolError(CodeProtocol, "padding of %d in HEADERS", pad)
	}
	return p[:len(p)-pad], nil
}

func (h *headerBlock) decode(p []byte) error {
	h.fields, h.size = fields{}, 0
	_, err := h.dec.Write(p)
	if err == nil {
		err = h.dec.Close()
	}
	if errors.Is(err, hpack.ErrStringLength) {
		return protocolError(CodeCalm, "header of more than %d bytes", h.c.cfg.MaxHeaderBytes)
	}
	if err != nil {
		return protocolError(CodeCompression, "header block: %v", err)
	}
	if h.size > h.c.cfg.MaxHeaderBytes {
		return protocolError(CodeCalm, "header list of %d bytes", h.size)
	}
	return nil
}

// field takes one decoded field.
func (h *headerBlock) field(f hpack.HeaderField) {
	h.size += int(f.Size())
	switch {
	case h.size > h.c.cfg.MaxHeaderBytes:
	case strings.HasPrefix(f.Name, ":"):
		h.fields.pseudo(f)
	default:
		h.fields.plain(f)
	}
}

func (fs *fields) pseudo(f hpack.HeaderField) {
	var to *string
	switch f.Name {
	case ":method":
		to = &fs.method
	case ":authority":
		to = &fs.authority
	case ":status":
		to = &fs.status
	default:
		fs.foreign = f.Name
		return
	}
	if *to != "" || fs.regular || f.Value == "" {
		fs.malformed = f.Name
	}
	*to = f.Value
}

func (fs *fields) plain(f hpack.HeaderField) {
	fs.regular = true
	switch f.Name {
	case "forwarded":
		fs.forwarded = f.Value
	case "baggage":
		fs.baggage = f.Value
	case "traceparent":
		fs.traceparent = f.Value
	case "connection", "transfer-encoding", "upgrade", "keep-alive", "proxy-connection":
		fs.malformed = f.Name
	}
	if f.Name == "" || strings.ToLower(f.Name) != f.Name {
		fs.malformed = f.Name
	}
}

// sendHeaders queues a HEADERS frame, with CONTINUATION if it is large. Conn.mu is held.
func (c *Conn) sendHeaders(id uint32, end bool, list []hpack.HeaderField) {
	c.encBuf.Reset()
	for _, f := range list {
		c.enc.WriteField(f) // to a bytes.Buffer: cannot fail
	}
	var flags uint8
	if end {
		flags = flagEndStream
	}
	typ := frameHeaders
	for block := c.encBuf.Bytes(); ; {
		n := min(len(block), c.peerMaxFrame)
		if n == len(block) {
			flags |= flagEndHeaders
		}
		c.control(append(appendFrame(nil, frame{length: n, typ: typ, flags: flags, stream: id}), block[:n]...))
		if block = block[n:]; len(block) == 0 {
			return
		}
		typ, flags = frameContinuation, 0
	}
}
