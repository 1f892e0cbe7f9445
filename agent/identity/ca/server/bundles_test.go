package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/wire/bundlepb"
)

// changing is a source whose authority can be replaced.
type changing struct {
	mu      sync.Mutex
	now     *ca.Authority
	changed chan struct{}
}

func (c *changing) Authority() *ca.Authority {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *changing) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

func (c *changing) set(a *ca.Authority) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = a
	close(c.changed)
	c.changed = make(chan struct{})
}

// telling serves bundles until stop is called, which returns when the server has ended.
func telling(t *testing.T, s *changing) (address string, m *metrics, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o, err := Options{Namespace: "culvert-system", TrustDomain: domain(), Logger: slog.New(slog.DiscardHandler)}.complete()
	if err != nil {
		t.Fatal(err)
	}
	m = newMetrics(s.Authority)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- serveGRPC(ctx, l, newIssuer(o, s.Authority, always(o.SVIDLife), callers(), placed(), m), newBundles(ctx, s, m), newServing(s.Authority, o.dnsNames(), always(o.SVIDLife)), m)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return l.Addr().String(), m, stop
}

func connect(t *testing.T, address string, roots []*x509.Certificate) bundlepb.TrustBundleClient {
	t.Helper()
	pool := x509.NewCertPool()
	for _, r := range roots {
		pool.AddCert(r)
	}
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(
		&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: "culvert-ca.culvert-system"})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return bundlepb.NewTrustBundleClient(conn)
}

func watch(t *testing.T, c bundlepb.TrustBundleClient) grpc.ServerStreamingClient[bundlepb.Bundle] {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	s, err := c.Watch(ctx, &bundlepb.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// authority is one with an intermediate below root, and the others in its bundle.
func authority(t *testing.T, root *ca.Root, others ...*ca.Root) *ca.Authority {
	t.Helper()
	m, err := root.Intermediate(domain(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range others {
		m.Roots = append(m.Roots, ca.EncodeCertificates([]*x509.Certificate{r.Certificate()})...)
	}
	a, err := ca.Load(domain(), m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newRoot(t *testing.T) *ca.Root {
	t.Helper()
	r, err := ca.NewRoot(domain(), 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAgentsAreToldTheRootsAndEachChange(t *testing.T) {
	old, next := newRoot(t), newRoot(t)
	s := &changing{now: authority(t, old), changed: make(chan struct{})}
	address, m, stop := telling(t, s)
	const agents = 30
	streams := make([]grpc.ServerStreamingClient[bundlepb.Bundle], agents)
	for i := range streams {
		streams[i] = watch(t, connect(t, address, s.Authority().Roots()))
	}
	expect := func(want ...*ca.Root) {
		t.Helper()
		for i, stream := range streams {
			b, err := stream.Recv()
			if err != nil {
				t.Fatalf("agent %d: %v", i, err)
			}
			if b.TrustDomain != "cluster.local" || len(b.Roots) != len(want) {
				t.Fatalf("agent %d: %s with %d roots, want %d", i, b.TrustDomain, len(b.Roots), len(want))
			}
			for k, r := range want {
				if string(b.Roots[k]) != string(r.Certificate().Raw) {
					t.Fatalf("agent %d: root %d is another", i, k)
				}
			}
		}
	}
	expect(old)
	if n := testutil.ToFloat64(m.streams); n != agents {
		t.Errorf("%v streams counted, want %d", n, agents)
	}
	s.set(authority(t, old, next))
	expect(old, next)
	s.set(authority(t, old, next)) // another intermediate: nothing to tell
	s.set(authority(t, next, old))
	expect(next, old)
	s.set(authority(t, next))
	expect(next)

	began := time.Now()
	stop()
	if took := time.Since(began); took > drainTimeout {
		t.Errorf("the streams kept the server from ending for %s", took)
	}
	for i, stream := range streams {
		if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("agent %d: ended with %v", i, err)
		}
	}
}

func TestStreamsOfOneAddressAreBounded(t *testing.T) {
	s := &changing{now: authority(t, newRoot(t)), changed: make(chan struct{})}
	address, m, _ := telling(t, s)
	var c bundlepb.TrustBundleClient
	for i := range maxWatchesOfAddress {
		if i%(maxStreams-1) == 0 {
			c = connect(t, address, s.Authority().Roots())
		}
		if _, err := watch(t, c).Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := watch(t, c).Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("one more: %v", err)
	}
	if n := testutil.ToFloat64(m.streamsRefused); n != 1 {
		t.Errorf("%v refusals counted", n)
	}
}

func TestPlacesOfStreamsAreGivenBack(t *testing.T) {
	b := newPlaces(maxWatches, maxWatchesOfAddress)
	for range 3 * maxWatches {
		if !b.enter("10.0.0.1") {
			t.Fatal("no place although all were left")
		}
		b.leave("10.0.0.1")
	}
	if len(b.by) != 0 {
		t.Fatalf("%d addresses are remembered", len(b.by))
	}
	for i := range maxWatches {
		if !b.enter(net.IPv4(10, 0, byte(i>>8), byte(i)).String()) {
			t.Fatalf("no place for agent %d", i)
		}
	}
	if b.enter("10.1.0.1") {
		t.Fatal("more streams than are to be")
	}
}

// TestServersCertificateIsAlwaysBelowARootThatAgentsKnow walks through a rotation with an agent that learns each bundle
// only when the next is about to come.
func TestServersCertificateIsAlwaysBelowARootThatAgentsKnow(t *testing.T) {
	old, next := newRoot(t), newRoot(t)
	bundles := []*ca.Authority{authority(t, old), authority(t, old, next), authority(t, next, old), authority(t, next)}
	var current *ca.Authority
	s := newServing(func() *ca.Authority { return current }, []string{"culvert-ca"}, always(time.Minute))
	for i := range bundles {
		current = bundles[i]
		c, err := s.certificate(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if c.Leaf.NotAfter.After(time.Now().Add(time.Minute)) {
			t.Error("outlives SVIDs, and so the root that is dropped when these have expired")
		}
		for _, known := range bundles[max(0, i-1) : i+1] {
			options := x509.VerifyOptions{DNSName: "culvert-ca", Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool()}
			for _, r := range known.Roots() {
				options.Roots.AddCert(r)
			}
			for _, der := range c.Certificate[1:] {
				above, err := x509.ParseCertificate(der)
				if err != nil {
					t.Fatal(err)
				}
				options.Intermediates.AddCert(above)
			}
			if _, err := c.Leaf.Verify(options); err != nil {
				t.Errorf("step %d, agent with %d roots: %v", i, len(known.Roots()), err)
			}
		}
	}
}
