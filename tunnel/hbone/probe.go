package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// probePatience is how long a probed peer has to speak first.
const probePatience = 500 * time.Millisecond

// Probe makes the TLS handshake of Client, waits for the peer's first frame, and closes tcp. In TLS 1.3 our side is
// complete before a server has looked at our certificate: only by its first frame it accepts, or by an alert it refuses.
// ctx bounds it all.
//
// Nothing is sent at first. A server that closes while bytes of ours are on their way resets the connection, and its
// alert may be lost with that. One that does not speak until it is spoken to gets our preface later.
func Probe(ctx context.Context, tcp *net.TCPConn, tc *tls.Config) error {
	defer tcp.Close()
	conn := tls.Client(tcp, tc)
	err := conn.HandshakeContext(ctx)
	if err == nil {
		err = checkHandshake(conn.ConnectionState())
	}
	if err != nil {
		return fmt.Errorf("TLS handshake with %s: %w", tcp.RemoteAddr(), err)
	}
	if err := probeAnswer(ctx, tcp, conn); err != nil {
		return &AnswerError{Err: errors.Join(err, ctx.Err())}
	}
	return conn.Close()
}

// AnswerError says why there was no answer after a TLS handshake that was complete for us.
type AnswerError struct{ Err error }

func (e *AnswerError) Error() string { return "no answer after the handshake: " + e.Err.Error() }
func (e *AnswerError) Unwrap() error { return e.Err }

func probeAnswer(ctx context.Context, tcp *net.TCPConn, conn *tls.Conn) error {
	head := make([]byte, headerLen)
	if err := tcp.SetReadDeadline(time.Now().Add(probePatience)); err != nil {
		return err
	}
	n, err := io.ReadFull(conn, head)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = probeSpeaking(ctx, tcp, conn, head[n:])
	}
	if err != nil {
		return err
	}
	if frameType(head[3]) != frameSettings {
		return fmt.Errorf("not HTTP/2: %q", head)
	}
	return nil
}

// probeSpeaking reads on after saying what a client says first.
func probeSpeaking(ctx context.Context, tcp *net.TCPConn, conn *tls.Conn, head []byte) error {
	if err := tcp.SetDeadline(time.Time{}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { tcp.SetDeadline(past) })
	defer stop()
	if _, err := conn.Write(appendSettings([]byte(clientPreface), nil)); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, head)
	return err
}
