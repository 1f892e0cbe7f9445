package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/wire"
)

const (
	trustDomain = "cluster.local"
	caAddress   = "127.0.0.1:15012"
	caName      = "culvert-ca.culvert-system.svc"
	caLife      = 24 * time.Hour
)

// authority signs for the agent whatever it asks for: who may have which identity is not measured here.
type authority struct {
	ca     *ca.Authority
	server *grpc.Server
	ended  chan error
	roots  string // file
	token  string // file
}

func startAuthority(p *place) (*authority, error) {
	a := &authority{
		ended: make(chan error, 1),
		roots: filepath.Join(p.data, "roots.pem"), token: filepath.Join(p.data, "ca-token"),
	}
	config, err := a.make()
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	var l net.Listener
	err = p.node.Do(func() error {
		l, err = net.Listen("tcp", caAddress)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	a.server = grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	wire.Register(a.server, a)
	go func() { a.ended <- a.server.Serve(l) }()
	return a, nil
}

// make makes the root and what the agent needs, and returns what the server needs.
func (a *authority) make() (*tls.Config, error) {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return nil, err
	}
	if a.ca, err = ca.New(td); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	chain, err := a.ca.SignServer([]string{caName}, key.Public(), caLife)
	if err != nil {
		return nil, err
	}
	own := tls.Certificate{PrivateKey: key}
	for _, c := range chain {
		own.Certificate = append(own.Certificate, c.Raw)
	}
	return &tls.Config{Certificates: []tls.Certificate{own}}, errors.Join(
		os.WriteFile(a.roots, ca.EncodeCertificates(a.ca.Roots()), 0o600),
		os.WriteFile(a.token, []byte("scale"), 0o600))
}

func (a *authority) close() error {
	a.server.Stop()
	if err := <-a.ended; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// CreateCertificate implements wire.Handler.
func (a *authority) CreateCertificate(_ context.Context, r wire.Request) (*wire.Answer, error) {
	id, err := spiffeid.FromString(r.Identity)
	if err != nil {
		return nil, err
	}
	key, err := ca.CheckCSR(r.CSR, id)
	if err != nil {
		return nil, err
	}
	chain, err := a.ca.Sign(id, key, caLife)
	return &wire.Answer{Chain: chain, Roots: a.ca.Roots()}, err
}
