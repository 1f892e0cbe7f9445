package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/istio"
)

func domain() spiffeid.TrustDomain {
	return spiffeid.RequireTrustDomainFromString("cluster.local")
}

func id(namespace, account string) spiffeid.ID {
	return spiffeid.RequireFromSegments(domain(), "ns", namespace, "sa", account)
}

// people knows who holds which token.
type people map[string]ca.Caller

func (p people) Authenticate(_ context.Context, token, _ string) (ca.Caller, error) {
	switch c, ok := p[token]; {
	case token == "while the API server is away":
		return ca.Caller{}, fmt.Errorf("token review: %w", ca.ErrUnavailable)
	case !ok:
		return ca.Caller{}, errors.New("token: not authenticated")
	default:
		return c, nil
	}
}

func agentOn(node string) ca.Caller {
	return ca.Caller{Namespace: "culvert-system", ServiceAccount: "culvert-agent", Pod: "agent-" + node, PodUID: "uid", Node: node}
}

// running has node/namespace/account of each live pod.
type running map[string]bool

func (r running) Runs(_ context.Context, node, namespace, account string) (bool, error) {
	if node == "lost" {
		return false, fmt.Errorf("pods: %w", ca.ErrUnavailable)
	}
	return r[node+"/"+namespace+"/"+account], nil
}

// Addresses implements Placement: an agent on node n runs at the address of that name in addresses.
func (r running) Addresses(_ context.Context, c ca.Caller) ([]netip.Addr, error) {
	if c.Node == "lost" {
		return nil, fmt.Errorf("pod: %w", ca.ErrUnavailable)
	}
	return r.KnownAddresses(c), nil
}

func (r running) KnownAddresses(c ca.Caller) []netip.Addr {
	if c.Node == "a" {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	}
	return []netip.Addr{netip.MustParseAddr("127.0.0.2")}
}

// fixed is a source that never changes.
type fixed struct{ authority *ca.Authority }

func (f fixed) Authority() *ca.Authority { return f.authority }
func (f fixed) Changed() <-chan struct{} { return nil }

// server is a CA on loopback.
type server struct {
	address   string
	authority *ca.Authority
	log       *buffer
	metrics   *metrics
}

// buffer is a log that is read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func start(t testing.TB, authn Authenticator, placement Placement, alter func(*Options)) *server {
	t.Helper()
	authority := below(t)
	log := &buffer{}
	o := Options{Namespace: "culvert-system", TrustDomain: domain(), Logger: slog.New(slog.NewTextHandler(log, nil))}
	if alter != nil {
		alter(&o)
	}
	o, err := o.complete()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	get := func() *ca.Authority { return authority }
	s := &server{address: l.Addr().String(), authority: authority, log: log, metrics: newMetrics(get)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- serveGRPC(ctx, l, newIssuer(o, get, always(o.SVIDLife), authn, placement, s.metrics), newBundles(ctx, fixed{authority}, s.metrics),
			newServing(get, o.dnsNames(), always(o.SVIDLife)), s.metrics)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s
}

func always(life time.Duration) func() time.Duration { return func() time.Duration { return life } }

// below is an authority that signs below a root, as a CA that made both does.
func below(t testing.TB) *ca.Authority {
	t.Helper()
	root, err := ca.NewRoot(domain(), 365*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	m, err := root.Intermediate(domain(), 30*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	a, err := ca.Load(domain(), m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// client is the agent's, with a token.
func client(t testing.TB, address string, roots []byte, token string) *istio.Client {
	t.Helper()
	folder := t.TempDir()
	write(t, filepath.Join(folder, "token"), []byte(token+"\n"))
	write(t, filepath.Join(folder, "roots"), roots)
	c, err := istio.New(istio.Options{
		Address: address, TokenFile: filepath.Join(folder, "token"), RootsFile: filepath.Join(folder, "roots"),
		ClusterID: "Kubernetes", TrustDomain: domain(), ServerName: "culvert-ca.culvert-system.svc",
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func (s *server) client(t testing.TB, token string) *istio.Client {
	t.Helper()
	return client(t, s.address, ca.EncodeCertificates(s.authority.Roots()), token)
}

func write(t testing.TB, file string, text []byte) {
	t.Helper()
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// refusedWith checks that the caller learns no more than that it was refused, and that the log says why.
func refusedWith(t *testing.T, err error, outside string, log fmt.Stringer, inside string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), outside) {
		t.Fatalf("error %v, want %q in it", err, outside)
	}
	if strings.Contains(err.Error(), inside) {
		t.Errorf("error %q tells outside that %q", err, inside)
	}
	if !strings.Contains(log.String(), inside) {
		t.Errorf("log does not say %q:\n%s", inside, log)
	}
}
