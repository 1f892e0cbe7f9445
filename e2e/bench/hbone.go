package main

import (
	"context"
	"fmt"
	"net"

	"github.com/culvert-mesh/culvert/tunnel/hbone"
)

// newClientEnd connects to the server end once; every connection becomes a stream of that connection, as
// the tunnel does it.
func newClientEnd(ctx context.Context, c roleConfig) (func(*net.TCPConn), func(), error) {
	config, err := clientTLS(c.Dir)
	if err != nil {
		return nil, nil, err
	}
	tcp, err := dial(ctx, c.Target)
	if err != nil {
		return nil, nil, fmt.Errorf("dialling the server end: %w", err)
	}
	conn, err := hbone.Client(ctx, tcp, config, hbone.Config{})
	if err != nil {
		tcp.Close()
		return nil, nil, fmt.Errorf("HBONE to the server end: %w", err)
	}
	handle := func(app *net.TCPConn) {
		stream, err := conn.Connect(ctx, hbone.Request{Authority: c.Authority})
		if err != nil {
			app.SetLinger(0)
			app.Close()
			return
		}
		stream.Relay(app)
	}
	return handle, func() { conn.Close() }, nil
}

// newServerEnd accepts HBONE connections and connects each stream to the address it asks for.
func newServerEnd(ctx context.Context, c roleConfig) (func(*net.TCPConn), func(), error) {
	config, err := serverTLS(c.Dir)
	if err != nil {
		return nil, nil, err
	}
	serve := func(ctx context.Context, r *hbone.Request) {
		app, err := dial(ctx, r.Authority)
		if err != nil {
			r.Refuse(503)
			return
		}
		r.Accept(app)
	}
	ctx, cancel := context.WithCancel(ctx)
	handle := func(tcp *net.TCPConn) {
		conn, err := hbone.Server(ctx, tcp, config, hbone.Config{}, serve)
		if err != nil {
			tcp.Close()
			return
		}
		<-conn.Done()
	}
	return handle, cancel, nil
}
