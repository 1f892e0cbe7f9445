package istio

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/ca/catest"
	"github.com/culvert-mesh/culvert/agent/identity/ca/wire"
)

// failed is the error of one attempt, which must come in time and tell these things.
func failed(t *testing.T, c *Client, want ...string) error {
	t.Helper()
	began := time.Now()
	_, err := c.Issue(t.Context(), identity.Workload{ID: cart()})
	if took := time.Since(began); took > c.Timeout+5*time.Second {
		t.Errorf("took %s, want at most %s", took, c.Timeout)
	}
	for _, w := range want {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("error %v, want %q in it", err, w)
		}
	}
	return err
}

func TestSlowAnswerIsTaken(t *testing.T) {
	f := startCA(t)
	sign := *f.answer.Load()
	f.answers(func(ctx context.Context, r wire.Request) (*wire.Answer, error) {
		time.Sleep(time.Second)
		return sign(ctx, r)
	})
	if _, err := newClient(t, f.address, mount(t, f.root), nil).Issue(t.Context(), identity.Workload{ID: cart()}); err != nil {
		t.Fatal(err)
	}
}

// What answers at the CA's address is no CA, or says nothing.
func TestNoCAAtTheAddress(t *testing.T) {
	f := startCA(t)
	m := mount(t, f.root)
	key := catest.Key(t)
	leaf := f.root.Leaf(t, &key.PublicKey, func(c *x509.Certificate) { c.DNSNames = []string{serverName} })
	served := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}}, NextProtos: []string{"h2"}}
	tests := []struct {
		name  string
		serve func(net.Conn)
		want  []string
	}{
		{"silence", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, []string{"DeadlineExceeded", "no answer within 1s"}},
		{"silence after the handshake", func(c net.Conn) { _, _ = io.Copy(io.Discard, tls.Server(c, served)) }, []string{"no answer within 1s"}},
		{"the end", func(net.Conn) {}, []string{"Unavailable"}},
		{"garbage", func(c net.Conn) { _, _ = c.Write(make([]byte, 1000)) }, []string{"Unavailable", "tls:"}},
		{"garbage after the handshake", func(c net.Conn) { _, _ = tls.Server(c, served).Write(make([]byte, 1000)) }, []string{"Unavailable"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			failed(t, newClient(t, listen(t, test.serve), m, func(o *Options) { o.Timeout = time.Second }), test.want...)
		})
	}

	t.Run("plain HTTP", func(t *testing.T) {
		s := httptest.NewServer(http.NotFoundHandler())
		defer s.Close()
		failed(t, newClient(t, s.Listener.Addr().String(), m, nil), "Unavailable", "tls: first record does not look like a TLS handshake")
	})
	t.Run("gRPC without a CA", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		g := grpc.NewServer(grpc.Creds(credentials.NewTLS(served)))
		var done sync.WaitGroup
		done.Go(func() { _ = g.Serve(l) })
		defer func() { g.Stop(); done.Wait() }()
		failed(t, newClient(t, l.Addr().String(), m, nil), "Unimplemented", "is this the address of a CA?")
	})
	t.Run("a CA with another root", func(t *testing.T) {
		other := mount(t, catest.Root(t, "other"))
		failed(t, newClient(t, f.address, other, nil), "Unavailable", "leads to none of the 1 roots of "+other.roots)
	})
}

// listen serves each connection until the test ends.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			tasks.Go(func() {
				defer context.AfterFunc(ctx, func() { c.Close() })()
				defer c.Close()
				serve(c)
			})
		}
	})
	t.Cleanup(func() { cancel(); l.Close(); tasks.Wait() })
	return l.Addr().String()
}

func TestClocksThatDiffer(t *testing.T) {
	f := startCA(t)
	c := newClient(t, f.address, mount(t, f.root), nil)
	tests := []struct {
		name  string
		ahead time.Duration // the CA's clock
		life  time.Duration
		want  string // empty: taken
	}{
		{"the same", 0, time.Hour, ""},
		{"the CA's nearly 5 min ahead", 5*time.Minute - 5*time.Second, time.Hour, ""},
		{"the CA's 5 min behind", -5 * time.Minute, time.Hour, ""},
		{"the CA's hours behind", -5 * time.Hour, 24 * time.Hour, ""},
		{"the CA's more than 5 min ahead", 5*time.Minute + 5*time.Second, time.Hour, "are the clocks right?"},
		{"the CA's hours ahead", 5 * time.Hour, 24 * time.Hour, "are the clocks right?"},
		{"the CA's behind by more than a life", -time.Hour - time.Minute, time.Hour, "are the clocks right?"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f.answers(func(_ context.Context, r wire.Request) (*wire.Answer, error) {
				now := time.Now().Add(test.ahead)
				return &wire.Answer{Chain: []*x509.Certificate{f.root.Leaf(t, key(t, r), uri(r.Identity), func(c *x509.Certificate) {
					c.NotBefore, c.NotAfter = now, now.Add(test.life)
				})}}, nil
			})
			if test.want != "" {
				failed(t, c, test.want)
				return
			}
			if _, err := c.Issue(t.Context(), identity.Workload{ID: cart()}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// The roots change between the question and the answer; what counts are those of the moment when the answer is there.
func TestRootReplacedInMidAir(t *testing.T) {
	f := startCA(t)
	old, next := f.root, catest.Root(t, "next")
	tests := []struct {
		name          string
		signs         *catest.CA
		before, after []*catest.CA
		want          string // empty: taken
	}{
		{"old answer, both trusted by then", old, []*catest.CA{old}, []*catest.CA{old, next}, ""},
		{"new answer, trusted just in time", next, []*catest.CA{old}, []*catest.CA{old, next}, ""},
		{"old answer, not trusted any more", old, []*catest.CA{old, next}, []*catest.CA{next}, "leads to none of the 1 roots known"},
		{"new answer, not trusted yet", next, []*catest.CA{old}, []*catest.CA{old}, "leads to none of the 1 roots known"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := newClient(t, f.address, mount(t, old), nil)
			trust := func(roots []*catest.CA) {
				c.roots.update(func() {
					c.roots.mounted = nil
					for _, r := range roots {
						c.roots.mounted = append(c.roots.mounted, r.Cert)
					}
				})
			}
			trust(test.before)
			f.answers(func(_ context.Context, r wire.Request) (*wire.Answer, error) {
				trust(test.after)
				return &wire.Answer{Chain: []*x509.Certificate{test.signs.Leaf(t, key(t, r), uri(r.Identity))}}, nil
			})
			if test.want == "" {
				if _, err := c.Issue(t.Context(), identity.Workload{ID: cart()}); err != nil {
					t.Fatal(err)
				}
				return
			}
			failed(t, c, test.want, c.RootsFile)
		})
	}
}

func TestTokenThatIsNoGood(t *testing.T) {
	f := startCA(t)
	sign := *f.answer.Load()
	var asked atomic.Int32
	f.answers(func(ctx context.Context, r wire.Request) (*wire.Answer, error) {
		asked.Add(1)
		if md, _ := metadata.FromIncomingContext(ctx); md.Get("authorization")[0] != "Bearer token-2" {
			return nil, status.Error(codes.Unauthenticated, "request authenticate failure")
		}
		return sign(ctx, r)
	})
	m := mount(t, f.root)
	c := newClient(t, f.address, m, nil)
	err := failed(t, c, "is the token in "+m.token+" for the CA's audience, not expired", `"Kubernetes"`)
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("code %s behind the explanation", status.Code(err))
	}
	if strings.Contains(err.Error(), "token-1") {
		t.Error("the error tells the token")
	}

	write(t, m.token, []byte("token-2\n"))
	if _, err := c.Issue(t.Context(), identity.Workload{ID: cart()}); err != nil {
		t.Errorf("after the token was replaced: %v", err)
	}

	before := asked.Load()
	write(t, m.token, []byte(" \n"))
	failed(t, c, m.token+" is empty")
	write(t, m.token, make([]byte, maxTokenBytes+1))
	failed(t, c, m.token+": more than 16384 bytes")
	if err := os.Remove(m.token); err != nil {
		t.Fatal(err)
	}
	failed(t, c, m.token+": no such file")
	if asked.Load() != before {
		t.Error("the CA was asked without a token")
	}
}

func TestErrorsOfTheCASayWhatToDo(t *testing.T) {
	f := startCA(t)
	m := mount(t, f.root)
	const impersonation = "request impersonation authentication failure"
	tests := []struct {
		name, cluster string
		answer        error
		want          []string
	}{
		{"istiod, node authorization", "west", status.Error(codes.Unauthenticated, impersonation),
			[]string{impersonation, "istiod's CA_TRUSTED_NODE_ACCOUNTS", "run on this node", `is "west" istiod's CLUSTER_ID`}},
		{"istiod, node authorization without a cluster", "", status.Error(codes.Unauthenticated, impersonation),
			[]string{"wants a cluster id and none is set"}},
		{"istiod, token", "west", status.Error(codes.Unauthenticated, "request authenticate failure"),
			[]string{"for the CA's audience", `"west"`}},
		{"culvert", "west", status.Error(codes.PermissionDenied, "refused; the CA's log says why under refusal 7"),
			[]string{"refusal 7", "in CA_TRUSTED_NODE_ACCOUNTS", "run on this node"}},
		{"busy", "west", status.Error(codes.ResourceExhausted, "too many requests"), []string{"too many requests"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f.answers(func(context.Context, wire.Request) (*wire.Answer, error) { return nil, test.answer })
			c := newClient(t, f.address, m, func(o *Options) { o.ClusterID = test.cluster })
			failed(t, c, append(test.want, cart().String(), f.address)...)
		})
	}
}
