package istio

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/catest"
	"github.com/culvert-mesh/culvert/agent/identity/ca/wire"
	"github.com/culvert-mesh/culvert/agent/identity/ca/wire/bundlepb"
)

const serverName = "istiod.istio-system.svc"

func domain() spiffeid.TrustDomain {
	return spiffeid.RequireTrustDomainFromString("cluster.local")
}

func cart() spiffeid.ID { return spiffeid.RequireFromPath(domain(), "/ns/shop/sa/cart") }

// fakeCA answers over TLS what answer makes of a request.
type fakeCA struct {
	root    *catest.CA
	stream  *streamer // nil: it streams no roots, as istiod
	address string
	answer  atomic.Pointer[func(context.Context, wire.Request) (*wire.Answer, error)]
	stop    func()
}

func (f *fakeCA) CreateCertificate(ctx context.Context, r wire.Request) (*wire.Answer, error) {
	return (*f.answer.Load())(ctx, r)
}

func (f *fakeCA) answers(with func(context.Context, wire.Request) (*wire.Answer, error)) {
	f.answer.Store(&with)
}

func startCA(t *testing.T, alter ...func(*fakeCA)) *fakeCA {
	t.Helper()
	f := &fakeCA{root: catest.Root(t, "root")}
	for _, a := range alter {
		a(f)
	}
	f.answers(func(_ context.Context, r wire.Request) (*wire.Answer, error) {
		return &wire.Answer{Chain: []*x509.Certificate{f.root.Leaf(t, key(t, r), uri(r.Identity))}, Roots: []*x509.Certificate{f.root.Cert}}, nil
	})
	f.serve(t, "127.0.0.1:0")
	return f
}

func (f *fakeCA) serve(t *testing.T, address string) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	f.address = l.Addr().String()
	serving := catest.Key(t)
	leaf := f.root.Leaf(t, &serving.PublicKey, func(c *x509.Certificate) { c.DNSNames = []string{serverName} })
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13,
		Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: serving}}})))
	wire.Register(g, f)
	if f.stream != nil {
		bundlepb.RegisterTrustBundleServer(g, f.stream)
	}
	var done sync.WaitGroup
	done.Go(func() {
		if err := g.Serve(l); err != nil {
			t.Error(err)
		}
	})
	f.stop = func() { g.Stop(); done.Wait() }
	t.Cleanup(f.stop)
}

// key is that of the request.
func key(t *testing.T, r wire.Request) any {
	t.Helper()
	id, err := spiffeid.FromString(r.Identity)
	if err != nil {
		t.Error(err)
		return nil
	}
	k, err := ca.CheckCSR(r.CSR, id)
	if err != nil {
		t.Errorf("our own CSR is refused: %v", err)
	}
	return k
}

func uri(text string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		if u, err := url.Parse(text); err == nil {
			c.URIs = []*url.URL{u}
		}
	}
}

// files are what the kubelet mounts.
type files struct{ token, roots string }

func mount(t *testing.T, roots ...*catest.CA) files {
	t.Helper()
	folder := t.TempDir()
	f := files{filepath.Join(folder, "token"), filepath.Join(folder, "root-cert.pem")}
	write(t, f.token, []byte("token-1\n"))
	if len(roots) > 0 {
		write(t, f.roots, catest.CertPEM(roots...))
	}
	return f
}

func write(t *testing.T, file string, text []byte) {
	t.Helper()
	if err := os.WriteFile(file+".new", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

func newClient(t *testing.T, address string, f files, alter func(*Options)) *Client {
	t.Helper()
	o := Options{Address: address, TokenFile: f.token, RootsFile: f.roots, ClusterID: "Kubernetes", TrustDomain: domain(),
		ServerName: serverName, Timeout: 5 * time.Second, Logger: slog.New(slog.DiscardHandler)}
	if alter != nil {
		alter(&o)
	}
	c, err := New(o)
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

func TestIssueSendsWhatIstiodWantsAndReadsTheTokenEachTime(t *testing.T) {
	f := startCA(t)
	sign := *f.answer.Load()
	var seen metadata.MD
	var asked wire.Request
	f.answers(func(ctx context.Context, r wire.Request) (*wire.Answer, error) {
		seen, _ = metadata.FromIncomingContext(ctx)
		asked = r
		return sign(ctx, r)
	})
	m := mount(t, f.root)
	c := newClient(t, f.address, m, nil)
	svid, err := c.Issue(t.Context(), identity.Workload{ID: cart()})
	if err != nil {
		t.Fatal(err)
	}
	if svid.ID != cart() || len(svid.Certificates) != 1 {
		t.Errorf("SVID %s with %d certificates, want one without the root", svid.ID, len(svid.Certificates))
	}
	if got := seen.Get("authorization"); len(got) != 1 || got[0] != "Bearer token-1" {
		t.Errorf("authorization %q", got)
	}
	if got := seen.Get("clusterid"); len(got) != 1 || got[0] != "Kubernetes" {
		t.Errorf("clusterid %q", got)
	}
	if asked.Identity != cart().String() || asked.Life != 24*time.Hour {
		t.Errorf("asked for %q and %s", asked.Identity, asked.Life)
	}
	write(t, m.token, []byte("token-2"))
	if _, err := c.Issue(t.Context(), identity.Workload{ID: cart()}); err != nil {
		t.Fatal(err)
	}
	if got := seen.Get("authorization"); len(got) != 1 || got[0] != "Bearer token-2" {
		t.Errorf("after a change of the file: authorization %q", got)
	}
	if err := os.Remove(m.token); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Issue(t.Context(), identity.Workload{ID: cart()}); err == nil || !strings.Contains(err.Error(), m.token) {
		t.Errorf("without a token: %v", err)
	}
}

func TestAnswersThatAreNotTaken(t *testing.T) {
	f := startCA(t)
	middle := f.root.Intermediate(t, "middle")
	stranger := catest.Root(t, "stranger")
	leafOf := func(by *catest.CA, above []*catest.CA, alter ...func(*x509.Certificate)) func(context.Context, wire.Request) (*wire.Answer, error) {
		return func(_ context.Context, r wire.Request) (*wire.Answer, error) {
			a := &wire.Answer{Chain: []*x509.Certificate{by.Leaf(t, key(t, r), append([]func(*x509.Certificate){uri(r.Identity)}, alter...)...)}}
			for _, c := range above {
				a.Chain = append(a.Chain, c.Cert)
			}
			return a, nil
		}
	}
	good := leafOf(f.root, nil)
	tests := []struct {
		name   string
		answer func(context.Context, wire.Request) (*wire.Answer, error)
		want   string // empty: taken
	}{
		{"good, without the root", good, ""},
		{"good, with an intermediate", leafOf(middle, []*catest.CA{middle}), ""},
		{"good, its clock ahead of ours", leafOf(f.root, nil, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(4 * time.Minute) }), ""},
		{"intermediate missing", leafOf(middle, nil), "does not verify"},
		{"signed by a stranger", leafOf(stranger, nil), "does not verify"},
		{"signed by a stranger who sends his root along", func(_ context.Context, r wire.Request) (*wire.Answer, error) {
			return &wire.Answer{Chain: []*x509.Certificate{stranger.Leaf(t, key(t, r), uri(r.Identity))}, Roots: []*x509.Certificate{stranger.Cert}}, nil
		}, "does not verify"},
		{"for another identity", leafOf(f.root, nil, uri("spiffe://cluster.local/ns/shop/sa/till")), "is for spiffe://cluster.local/ns/shop/sa/till"},
		{"for another trust domain", leafOf(f.root, nil, uri("spiffe://elsewhere/ns/shop/sa/cart")), "is for spiffe://elsewhere"},
		{"for two identities", leafOf(f.root, nil, func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }), "more than one URI"},
		{"for none", leafOf(f.root, nil, func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"x"} }), "does not verify"},
		{"for another key", func(_ context.Context, r wire.Request) (*wire.Answer, error) {
			return &wire.Answer{Chain: []*x509.Certificate{f.root.Leaf(t, &catest.Key(t).PublicKey, uri(r.Identity))}}, nil
		}, "for another key"},
		{"expired", leafOf(f.root, nil, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }), "expired at"},
		{"of the future", leafOf(f.root, nil, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }), "clocks"},
		{"for ten years", leafOf(f.root, nil, func(c *x509.Certificate) { c.NotAfter = time.Now().AddDate(10, 0, 0) }), "longer than"},
		{"for servers only", leafOf(f.root, nil, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "extended key usage"},
		{"a CA", func(context.Context, wire.Request) (*wire.Answer, error) {
			return &wire.Answer{Chain: []*x509.Certificate{middle.Cert}}, nil
		}, "for another key"},
		{"nothing", func(context.Context, wire.Request) (*wire.Answer, error) { return &wire.Answer{}, nil }, "no PEM certificate"},
		{"garbage", func(context.Context, wire.Request) (*wire.Answer, error) {
			return &wire.Answer{Chain: []*x509.Certificate{{Raw: []byte("garbage")}}}, nil
		}, "the CA's answer: certificate 1"},
		{"very much", func(context.Context, wire.Request) (*wire.Answer, error) {
			a := &wire.Answer{}
			for range 100 {
				a.Chain = append(a.Chain, f.root.Cert)
			}
			return a, nil
		}, "elements"},
		{"refused", func(context.Context, wire.Request) (*wire.Answer, error) {
			return nil, status.Error(codes.PermissionDenied, "refused")
		}, "PermissionDenied"},
		{"too late", func(ctx context.Context, _ wire.Request) (*wire.Answer, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, "DeadlineExceeded"},
	}
	c := newClient(t, f.address, mount(t, f.root), func(o *Options) { o.Timeout = time.Second })
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f.answers(test.answer)
			svid, err := c.Issue(t.Context(), identity.Workload{ID: cart()})
			switch {
			case test.want == "" && err != nil:
				t.Fatal(err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Fatalf("%v, error %v; want %q in it", svid, err, test.want)
			}
		})
	}
	f.answers(good)
	if _, err := c.Issue(t.Context(), identity.Workload{ID: cart()}); err != nil {
		t.Fatalf("after all that: %v", err)
	}
}

func TestIssueWaitsForTheRootsAndSaysSo(t *testing.T) {
	f := startCA(t)
	m := mount(t)
	var log bytes.Buffer
	c := newClient(t, f.address, m, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	if !c.Bundles()[0].Empty() {
		t.Fatal("roots from nowhere")
	}
	changed := c.Changed()
	issued := make(chan error, 1)
	go func() { _, err := c.Issue(t.Context(), identity.Workload{ID: cart()}); issued <- err }()
	time.Sleep(200 * time.Millisecond)
	write(t, m.roots, catest.CertPEM(f.root))
	if err := <-issued; err != nil {
		t.Fatal(err)
	}
	<-changed
	if c.Bundles()[0].Empty() {
		t.Fatal("no roots in the bundle")
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), m.roots) {
		t.Errorf("log does not say what it waits for: %s", &log)
	}
}

func TestWithoutRootsTheErrorNamesTheFile(t *testing.T) {
	m := mount(t)
	c := newClient(t, "127.0.0.1:1", m, func(o *Options) { o.Timeout = 100 * time.Millisecond })
	if _, err := c.Issue(t.Context(), identity.Workload{ID: cart()}); err == nil || !strings.Contains(err.Error(), m.roots) {
		t.Fatalf("error %v", err)
	}
}

func TestRootsChangeAndBrokenOnesDoNot(t *testing.T) {
	f := startCA(t)
	next := catest.Root(t, "next")
	m := mount(t, f.root)
	c := newClient(t, f.address, m, nil)
	write(t, m.roots, []byte("broken"))
	time.Sleep(2 * lookInterval)
	if !c.Bundles()[0].HasX509Authority(f.root.Cert) {
		t.Fatal("a broken file took the roots away")
	}
	changed := c.Changed()
	write(t, m.roots, catest.CertPEM(f.root, next))
	select {
	case <-changed:
	case <-time.After(10 * time.Second):
		t.Fatal("no change told")
	}
	if b := c.Bundles()[0]; !b.HasX509Authority(f.root.Cert) || !b.HasX509Authority(next.Cert) {
		t.Fatal("not both roots in the bundle")
	}
	select {
	case <-c.Changed():
		t.Fatal("told of a change that was none")
	case <-time.After(2 * lookInterval):
	}
}

func TestCAThatCannotProveItsName(t *testing.T) {
	f := startCA(t)
	c := newClient(t, f.address, mount(t, f.root), func(o *Options) { o.ServerName = "culvert-ca.culvert-system.svc" })
	if _, err := c.Issue(t.Context(), identity.Workload{ID: cart()}); err == nil || !strings.Contains(err.Error(), serverName) {
		t.Fatalf("error %v", err)
	}
}

func TestCAAwayAndBack(t *testing.T) {
	f := startCA(t)
	c := newClient(t, f.address, mount(t, f.root), nil)
	if _, err := c.Issue(t.Context(), identity.Workload{ID: cart()}); err != nil {
		t.Fatal(err)
	}
	f.stop()
	began := time.Now()
	if _, err := c.Issue(t.Context(), identity.Workload{ID: cart()}); err == nil || !strings.Contains(err.Error(), "code = Unavailable") {
		t.Fatalf("error %v", err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("took %s to notice", took)
	}
	f.serve(t, f.address)
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		_, err := c.Issue(t.Context(), identity.Workload{ID: cart()})
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestOptionsThatCannotBe(t *testing.T) {
	for _, alter := range []func(*Options){
		func(o *Options) { o.Address = "culvert-ca" },
		func(o *Options) { o.TokenFile = "" },
		func(o *Options) { o.RootsFile = "" },
		func(o *Options) { o.TrustDomain = spiffeid.TrustDomain{} },
		func(o *Options) { o.Logger = nil },
	} {
		o := Options{Address: "127.0.0.1:1", TokenFile: "t", RootsFile: "r", TrustDomain: domain(), Logger: slog.New(slog.DiscardHandler)}
		alter(&o)
		if c, err := New(o); err == nil {
			t.Errorf("accepted: %+v", o)
			_ = c.Close()
		}
	}
}
