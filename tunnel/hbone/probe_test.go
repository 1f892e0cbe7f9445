package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// TestProbe: a handshake is good when the peer has said so, and only then.
func TestProbe(t *testing.T) {
	client, server := tlsConfigs(t)
	strict := server.Clone()
	strict.ClientCAs = nil // knows no root
	ours := func(tc *tls.Config) func(*net.TCPConn) {
		return func(c *net.TCPConn) {
			if conn, err := Server(context.Background(), c, tc, Config{}, refuse503); err == nil {
				<-conn.Done()
			}
		}
	}
	after := func(do func(*tls.Conn)) func(*net.TCPConn) {
		return func(c *net.TCPConn) {
			s := tls.Server(c, server)
			if s.Handshake() == nil {
				do(s)
			}
			s.Close()
		}
	}
	unanswered := (*AnswerError)(nil)
	tests := map[string]struct {
		serve func(*net.TCPConn)
		want  func(error) bool
	}{
		"accepts": {ours(server), func(err error) bool { return err == nil }},
		"refuses our certificate": {ours(strict), func(err error) bool {
			remote := (*net.OpError)(nil)
			return errors.As(err, &unanswered) && errors.As(err, &remote) && remote.Op == "remote error"
		}},
		"speaks when spoken to": {after(func(s *tls.Conn) {
			if _, err := io.ReadFull(s, make([]byte, len(clientPreface))); err == nil {
				s.Write(appendSettings(nil, nil))
				io.Copy(io.Discard, s)
			}
		}), func(err error) bool { return err == nil }},
		"hangs up": {after(func(*tls.Conn) {}), func(err error) bool { return errors.As(err, &unanswered) && errors.Is(err, io.EOF) }},
		"is silent": {after(func(s *tls.Conn) { io.Copy(io.Discard, s) }), func(err error) bool {
			return errors.As(err, &unanswered) && errors.Is(err, context.DeadlineExceeded)
		}},
		"speaks something else": {after(func(s *tls.Conn) { s.Write([]byte("220 smtp.example ESMTP")) }), func(err error) bool { return errors.As(err, &unanswered) }},
		"is no TLS": {func(c *net.TCPConn) { c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }, func(err error) bool {
			return err != nil && !errors.As(err, &unanswered)
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			a, b := tcpPair(t)
			done := make(chan struct{})
			go func() {
				defer close(done)
				defer b.Close()
				test.serve(b)
			}()
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			if err := Probe(ctx, a, client); !test.want(err) {
				t.Errorf("got %v", err)
			}
			await(t, done, "server's end")
		})
	}
}
