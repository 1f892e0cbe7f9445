// Package istio gets SVIDs from a CA that speaks istio.v1.auth.IstioCertificateService: `culvert ca`, or istiod.
package istio

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/ca/wire"
	"github.com/culvert-mesh/culvert/agent/identity/svidcheck"
)

// Options configure a Client. Address, TokenFile, RootsFile, TrustDomain and Logger are required.
type Options struct {
	Address     string // host:port
	TokenFile   string // the agent's service account token, read at each call
	RootsFile   string // PEM; what the CA's certificate and its SVIDs must lead to. It may appear and change at any time; a CA may stream more
	TrustDomain spiffeid.TrustDomain
	ClusterID   string        // as istiod knows the cluster, which it must to certify others than the agent; empty: not told
	ServerName  string        // in the CA's certificate; empty: the host in Address
	Life        time.Duration // asked for; 0: 24 h
	Timeout     time.Duration // of one call; 0: 10 s
	Logger      *slog.Logger
}

const (
	defaultLife    = 24 * time.Hour
	defaultTimeout = 10 * time.Second
	minConnect     = 5 * time.Second
	maxHeaderBytes = 64 << 10 // an error's text is one
)

// Client is an identity.Issuer. Close ends it.
type Client struct {
	Options
	roots *roots
	ca    *wire.Client
	close func() error
}

// New returns a Client. It needs neither the CA nor its files yet: until the roots are there, Issue waits for them.
func New(o Options) (*Client, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	r := newRoots(o.RootsFile, o.TrustDomain, o.Logger)
	conn, err := grpc.NewClient("dns:///"+o.Address,
		grpc.WithTransportCredentials(newTransport(o.ServerName, r)),
		grpc.WithNoProxy(), // the CA is inside the cluster
		grpc.WithDisableServiceConfig(),
		grpc.WithMaxHeaderListSize(maxHeaderBytes),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: minConnect, Backoff: backoff.Config{
			BaseDelay: 250 * time.Millisecond, Multiplier: 1.6, Jitter: .3, MaxDelay: 5 * time.Second}}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(wire.MaxMessage), grpc.MaxCallSendMsgSize(wire.MaxMessage)),
	)
	if err != nil {
		return nil, fmt.Errorf("CA %s: %w", o.Address, err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	tasks.Go(func() { r.watch(ctx) })
	tasks.Go(func() { r.follow(ctx, watchOn(conn)) })
	return &Client{Options: o, roots: r, ca: wire.NewClient(conn), close: sync.OnceValue(func() error {
		stop()
		err := conn.Close()
		tasks.Wait()
		return err
	})}, nil
}

func (o *Options) complete() error {
	host, _, err := net.SplitHostPort(o.Address)
	switch {
	case err != nil:
		return fmt.Errorf("CA address %q: want host:port", o.Address)
	case o.TokenFile == "":
		return errors.New("CA client: no token file")
	case o.RootsFile == "":
		return errors.New("CA client: no file with roots")
	case o.TrustDomain.IsZero():
		return errors.New("CA client: no trust domain")
	case o.Logger == nil:
		return errors.New("CA client: no logger")
	}
	if o.ServerName == "" {
		o.ServerName = host
	}
	if o.Life == 0 {
		o.Life = defaultLife
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	return nil
}

// Close ends all calls and the connection, and waits.
func (c *Client) Close() error { return c.close() }

// Bundles returns the roots of the trust domain as last read or streamed; none before the file is there, so that
// nothing verifies.
func (c *Client) Bundles() []*x509bundle.Bundle { return []*x509bundle.Bundle{c.roots.bundle()} }

// String implements identity.Issuer.
func (c *Client) String() string { return "CA " + c.Address }

// Changed returns a channel that is closed when Bundles is to return something else than before. Ask for the
// channel first, then for the bundles, and no change is missed.
func (c *Client) Changed() <-chan struct{} { return c.roots.next() }

// Issue makes a key in memory and has it certified for id. It waits for the roots, if they are not there yet.
func (c *Client) Issue(ctx context.Context, w identity.Workload) (*identity.SVID, error) {
	id := w.ID
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	if err := c.roots.wait(ctx); err != nil {
		return nil, fmt.Errorf("SVID %s: %w", id, err)
	}
	ctx, err := withToken(ctx, c.TokenFile, c.ClusterID)
	if err != nil {
		return nil, fmt.Errorf("SVID %s: %w", id, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("SVID %s: key: %w", id, err)
	}
	svid, err := c.certify(ctx, id, key)
	if err != nil {
		identity.Wipe(key)
		return nil, fmt.Errorf("SVID %s: %w", id, err)
	}
	return svid, nil
}

// certify makes one call, and checks the answer.
func (c *Client) certify(ctx context.Context, id spiffeid.ID, key *ecdsa.PrivateKey) (*identity.SVID, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{id.URL()}}, key)
	if err != nil {
		return nil, fmt.Errorf("CSR: %w", err)
	}
	answer, err := c.ca.CreateCertificate(ctx, wire.Request{
		CSR:      pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}),
		Life:     c.Life,
		Identity: id.String(),
	})
	if err != nil {
		return nil, fmt.Errorf("CA %s: %w", c.Address, c.explain(err))
	}
	svid := &identity.SVID{SVID: x509svid.SVID{ID: id, Certificates: answer.Chain, PrivateKey: key}}
	if err := svidcheck.Check(&svid.SVID, id, c.roots.bundle(), time.Now()); err != nil {
		return nil, fmt.Errorf("answer of CA %s: %w", c.Address, c.explainAnswer(err, answer.Chain[0]))
	}
	return svid, nil
}
