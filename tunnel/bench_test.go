package tunnel

import (
	"context"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/tunnel/hbone"
)

// BenchmarkHandshake is a new TLS connection, both sides, with an intermediate in both chains.
func BenchmarkHandshake(b *testing.B) {
	ca := newAuthority(b, "cluster.local").intermediate(b)
	client, server := spiffeid.RequireFromString(ca.id("client")), spiffeid.RequireFromString(ca.id("server"))
	s := identitiesOf(b, "cluster.local", nil, ca.bundle(), ca.svid(b, client.String(), later()), ca.svid(b, server.String(), later()))
	for b.Loop() {
		x, y := tcpPair(b)
		done := make(chan error, 1)
		go func() {
			config, release := s.serverTLS(server, new(proof))
			defer release()
			conn, err := hbone.Server(context.Background(), y, config, hbone.Config{}, func(context.Context, *hbone.Request) {})
			if err == nil {
				<-conn.Done()
			}
			done <- err
		}()
		own, err := s.acquire(client)
		must(b, err)
		conn, err := hbone.Client(context.Background(), x, s.clientTLS(own, server, new(proof), nil), hbone.Config{})
		own.key.release()
		must(b, err)
		_ = conn.Close()
		must(b, <-done)
	}
}

// BenchmarkAuthorizeLocal is what a connection between two pods of one node is asked.
func BenchmarkAuthorizeLocal(b *testing.B) {
	ca := newAuthority(b, "cluster.local").intermediate(b)
	client, server := spiffeid.RequireFromString(ca.id("client")), spiffeid.RequireFromString(ca.id("server"))
	s := identitiesOf(b, "cluster.local", nil, ca.bundle(), ca.svid(b, client.String(), later()), ca.svid(b, server.String(), later()))
	for b.Loop() {
		must(b, s.authorizeLocal(client, server, server))
	}
}
