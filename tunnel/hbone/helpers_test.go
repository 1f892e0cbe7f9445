package hbone

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"
)

const patience = 10 * time.Second

// tlsConfigs returns both sides' configurations with certificates of one new CA.
func tlsConfigs(t testing.TB) (client, server *tls.Config) {
	t.Helper()
	caKey := newKey(t)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	leaf := func(serial int64) tls.Certificate {
		key := newKey(t)
		cert := &x509.Certificate{
			SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			URIs:        []*url.URL{{Scheme: "spiffe", Host: "test", Path: "/ns/a/sa/b"}}, DNSNames: []string{"test"},
		}
		der, err := x509.CreateCertificate(rand.Reader, cert, root, &key.PublicKey, caKey)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	}
	client, server = BaseTLSConfig(false), BaseTLSConfig(false)
	client.Certificates, server.Certificates = []tls.Certificate{leaf(2)}, []tls.Certificate{leaf(3)}
	client.RootCAs, client.ServerName = roots, "test"
	server.ClientCAs, server.ClientAuth = roots, tls.RequireAndVerifyClientCert
	return client, server
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// tcpPair returns the two ends of a connection.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dialed, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialed.Close(); accepted.Close() })
	return dialed.(*net.TCPConn), accepted.(*net.TCPConn)
}

// tunnel is a client and a server connection, and what the server's handler sees.
type tunnel struct {
	client, server *Conn
	results        chan result // of the relays at the server
}

type result struct {
	stats Stats
	err   error
}

// newTunnel makes a connection whose server hands each stream to h.
func newTunnel(t testing.TB, cfg Config, h Handler) *tunnel {
	t.Helper()
	cc, sc := tlsConfigs(t)
	a, b := tcpPair(t)
	tn := &tunnel{results: make(chan result, 1000)}
	done := make(chan error, 1)
	go func() {
		var err error
		tn.server, err = Server(context.Background(), b, sc, cfg, h)
		done <- err
	}()
	var err error
	if tn.client, err = Client(context.Background(), a, cc, cfg); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		tn.client.Close()
		tn.server.Close()
		await(t, tn.client.delivered, "end of the client's streams")
		await(t, tn.server.delivered, "end of the server's streams")
	})
	return tn
}

// newAppTunnel makes a connection whose server connects each stream to a socket that the test gets
// from apps.
func newAppTunnel(t testing.TB, cfg Config) (tn *tunnel, apps chan *net.TCPConn) {
	t.Helper()
	apps = make(chan *net.TCPConn, 1000)
	tn = newTunnel(t, cfg, func(_ context.Context, r *Request) {
		app, ours := tcpPair(t)
		apps <- app
		st, err := r.Accept(ours)
		tn.results <- result{st, err}
	})
	return tn, apps
}

// open connects through the tunnel and returns the application's ends on both sides.
func (tn *tunnel) open(t testing.TB, apps chan *net.TCPConn) (client, server *net.TCPConn, relayed chan result) {
	t.Helper()
	s, err := tn.client.Connect(context.Background(), Request{Authority: "10.0.0.1:80"})
	if err != nil {
		t.Fatal(err)
	}
	return relay(t, s, apps)
}

func relay(t testing.TB, s *Stream, apps chan *net.TCPConn) (client, server *net.TCPConn, relayed chan result) {
	t.Helper()
	app, ours := tcpPair(t)
	relayed = make(chan result, 1)
	go func() {
		st, err := s.Relay(ours)
		relayed <- result{st, err}
	}()
	select {
	case server = <-apps:
	case <-time.After(patience):
		t.Fatal("no stream at the server")
	}
	app.SetDeadline(time.Now().Add(2 * patience))
	server.SetDeadline(time.Now().Add(2 * patience))
	return app, server, relayed
}

func await[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("%s: nothing after %s", what, patience)
		panic("unreachable")
	}
}

// exchange writes p into one end and expects it at the other.
func exchange(t testing.TB, from, to *net.TCPConn, p []byte) {
	t.Helper()
	go from.Write(p)
	got := make([]byte, len(p))
	if _, err := io.ReadFull(to, got); err != nil {
		t.Fatalf("read %d bytes: %v", len(p), err)
	}
	if !bytes.Equal(got, p) {
		t.Fatal("bytes differ")
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}
