package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strconv"

	"golang.org/x/net/http2/hpack"
)

// Handler answers one CONNECT request, in a goroutine of its own: it must call one of Accept,
// Refuse and Decline, once. ctx ends when the peer gives up or the connection ends.
type Handler func(ctx context.Context, r *Request)

// Request is a CONNECT request. All of it is what the peer says: none of it is an identity.
type Request struct {
	// Authority is the destination, ip:port.
	Authority string
	// Forwarded, Baggage and Traceparent are the headers of these names, empty when absent.
	Forwarded, Baggage, Traceparent string

	stream   *Stream // of a server
	answered bool
}

var (
	errAnswered = errors.New("CONNECT request answered before")
	errRefused  = errors.New("CONNECT request refused")
	errDeclined = errors.New("CONNECT request not served: connection takes no more")
)

// Server takes an HBONE connection over tcp, which it owns from now on: on failure tcp is closed.
// It returns after the handshake, which ctx bounds; h is then called for each stream until the
// connection ends. tc usually starts as BaseTLSConfig and must demand and verify certificates.
func Server(ctx context.Context, tcp *net.TCPConn, tc *tls.Config, cfg Config, h Handler) (*Conn, error) {
	c := newConn(ctx, tcp, cfg.withDefaults(false), false)
	c.handler = h
	err := c.handshake(ctx, func(nc net.Conn) *tls.Conn { return tls.Server(nc, tc) })
	if err != nil {
		c.cancel(err)
		return nil, err
	}
	c.start()
	return c, nil
}

// onRequest handles a header block from the client: a request, or trailers.
func (c *Conn) onRequest(id uint32, end bool, f fields) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id%2 == 0 {
		return protocolError(CodeProtocol, "request on stream %d", id)
	}
	if id <= c.peerLast {
		return c.onTrailers(c.streams[id], end)
	}
	if c.goAwaySent || c.err != nil {
		return nil // the peer has been told that it will not be served
	}
	c.peerLast = id
	// Streams that were reset count until their handlers have ended, or a peer could have any
	// number of them at work.
	if c.active >= c.cfg.MaxStreams || len(c.streams) >= 2*c.cfg.MaxStreams {
		c.control(appendUint32Frame(nil, frameReset, id, uint32(CodeRefusedStream)))
		return c.countReset()
	}
	s := c.newStream(id)
	if end {
		s.recvEnd, s.rx.eof = true, true // nobody else knows the stream yet
	}
	r := &Request{Authority: f.authority, Forwarded: f.forwarded, Baggage: f.baggage, Traceparent: f.traceparent, stream: s}
	ctx, cancel := context.WithCancelCause(c.ctx)
	s.cancel = cancel
	c.wg.Go(func() { c.serve(ctx, r, f) })
	return nil
}

// onTrailers takes trailers for the END_STREAM they carry.
func (c *Conn) onTrailers(s *Stream, end bool) error {
	if s == nil || s.err != nil {
		return nil
	}
	if !end || s.recvEnd {
		s.resetLocked(CodeProtocol, protocolError(CodeProtocol, "second HEADERS"))
		return nil
	}
	c.mu.Unlock()
	c.endReceive(s)
	c.mu.Lock()
	return nil
}

// serve answers one request.
func (c *Conn) serve(ctx context.Context, r *Request, f fields) {
	defer r.stream.cancel(nil)
	if f.method != http.MethodConnect || f.authority == "" || f.foreign != "" || f.malformed != "" || f.status != "" {
		r.Refuse(http.StatusBadRequest) // fails only if the stream is gone
		return
	}
	c.handler(ctx, r)
	if !r.answered {
		c.log.Error("HBONE handler did not answer", "authority", r.Authority)
		r.Refuse(http.StatusServiceUnavailable)
	}
}

// Accept answers 200 and relays between app and the stream until both directions have ended; see
// Stream.Relay. It closes app in any case.
func (r *Request) Accept(app *net.TCPConn) (Stats, error) {
	s := r.stream
	if r.answered {
		return Stats{}, errors.Join(errAnswered, app.Close())
	}
	r.answered = true
	s.c.mu.Lock()
	if s.err == nil {
		s.c.sendHeaders(s.id, false, []hpack.HeaderField{{Name: ":status", Value: "200"}})
		s.c.flush(false)
	}
	s.c.mu.Unlock()
	return s.Relay(app)
}

// Stats returns what has been relayed so far of a request that is accepted.
func (r *Request) Stats() Stats { return r.stream.Stats() }

// Refuse answers with a status other than 200 and ends the stream.
func (r *Request) Refuse(status int) error {
	s := r.stream
	if r.answered {
		return errAnswered
	}
	r.answered = true
	defer s.forget()
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	c.sendHeaders(s.id, true, []hpack.HeaderField{{Name: ":status", Value: strconv.Itoa(status)}})
	if !s.recvEnd {
		// The answer is complete: the peer need send no more (RFC 9113, section 8.1).
		c.control(appendUint32Frame(nil, frameReset, s.id, uint32(CodeNo)))
	}
	s.abort(errRefused)
	c.flush(false)
	return nil
}

// Decline gives a request back unserved and tells the peer that the connection takes no more: GOAWAY first, so that
// a client which sends the request again (RFC 9113, section 8.7) does so over another connection.
func (r *Request) Decline() error {
	s := r.stream
	if r.answered {
		return errAnswered
	}
	r.answered = true
	defer s.forget()
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	c.closing = true
	if !c.goAwaySent {
		c.announceEnd()
	}
	c.control(appendUint32Frame(nil, frameReset, s.id, uint32(CodeRefusedStream)))
	s.abort(errDeclined)
	c.flush(false)
	return nil
}
