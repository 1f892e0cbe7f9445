package hbone

import (
	"context"
	"crypto/tls"
	"net"
	"strconv"

	"golang.org/x/net/http2/hpack"
)

// Client makes an HBONE connection over tcp, which it owns from now on: on failure tcp is closed.
// ctx bounds the handshake only. tc usually starts as BaseTLSConfig and must verify the peer; its
// refusal of our own certificate shows in the first Connect, as TLS 1.3 has it.
func Client(ctx context.Context, tcp *net.TCPConn, tc *tls.Config, cfg Config) (*Conn, error) {
	c := newConn(ctx, tcp, cfg.withDefaults(true), true)
	err := c.handshake(ctx, func(nc net.Conn) *tls.Conn { return tls.Client(nc, tc) })
	if err != nil {
		c.cancel(err)
		return nil, err
	}
	c.start()
	return c, nil
}

// Connect opens a stream and waits for the peer's answer; anything but 200 is a *StatusError. With
// ErrStreams, ErrGoAway and a *ResetError of CodeRefusedStream the peer has not served the request:
// another connection may carry it. The caller must Relay or Cancel the stream.
func (c *Conn) Connect(ctx context.Context, r Request) (*Stream, error) {
	s, err := c.open(r)
	if err != nil {
		return nil, err
	}
	select {
	case <-s.answered:
	case <-s.gone:
	case <-ctx.Done():
		s.Cancel()
		return nil, context.Cause(ctx)
	}
	c.mu.Lock()
	status, err := s.status, s.err
	c.mu.Unlock()
	switch {
	case status != 0 && status != 200:
		s.Cancel()
		return nil, &StatusError{Code: status}
	case err != nil:
		s.forget()
		return nil, err
	}
	return s, nil
}

func (c *Conn) open(r Request) (*Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(); err != nil {
		return nil, err
	}
	if c.active >= c.maxStreams() {
		return nil, ErrStreams
	}
	s := c.newStream(c.nextID)
	s.answered = make(chan struct{})
	c.nextID += 2
	c.sendHeaders(s.id, false, r.fields())
	c.flush(false)
	return s, nil
}

func (r Request) fields() []hpack.HeaderField {
	list := append(make([]hpack.HeaderField, 0, 5),
		hpack.HeaderField{Name: ":method", Value: "CONNECT"},
		hpack.HeaderField{Name: ":authority", Value: r.Authority})
	for _, f := range []hpack.HeaderField{
		{Name: "forwarded", Value: r.Forwarded},
		{Name: "baggage", Value: r.Baggage},
		{Name: "traceparent", Value: r.Traceparent},
	} {
		if f.Value != "" {
			list = append(list, f)
		}
	}
	return list
}

// onResponse handles a header block from the server: its answer, or trailers.
func (c *Conn) onResponse(id uint32, end bool, f fields) error {
	c.mu.Lock()
	s := c.streams[id]
	idle := c.idle(id)
	over := s == nil || s.err != nil || s.recvEnd
	c.mu.Unlock()
	if idle {
		return protocolError(CodeProtocol, "HEADERS on idle stream %d", id)
	}
	if over {
		return nil
	}
	status, err := strconv.Atoi(f.status)
	trailers := s.status != 0
	switch {
	case trailers && (!end || f.status != ""):
		s.reset(CodeProtocol, protocolError(CodeProtocol, "second answer"))
		return nil
	case !trailers && (err != nil || status < 100 || status > 599 || f.malformed != "" || status < 200 && end):
		s.reset(CodeProtocol, protocolError(CodeProtocol, "malformed answer"))
		return nil
	case !trailers && status < 200:
		return nil
	case !trailers:
		c.mu.Lock()
		s.status = status
		c.mu.Unlock()
		close(s.answered)
	}
	if end {
		c.endReceive(s)
	}
	return nil
}

// stopSending ends our direction without END_STREAM: the peer has ended its own and wants no more.
// Conn.mu is held.
func (s *Stream) stopSending() {
	s.stop, s.sendEnd = true, true
	s.poke()
	if s.app != nil {
		s.app.SetReadDeadline(past) // fails only on a closed socket
	}
	s.end()
}
