package server

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/catest"
	"github.com/culvert-mesh/culvert/agent/identity/ca/wire"
)

func callers() people {
	unbound := agentOn("a")
	unbound.Node = ""
	other := agentOn("a")
	other.ServiceAccount = "prometheus"
	return people{"agent of a": agentOn("a"), "agent of b": agentOn("b"), "agent of lost": agentOn("lost"),
		"unbound": unbound, "somebody else": other}
}

func placed() running { return running{"a/shop/cart": true, "b/shop/till": true} }

func TestWhoGetsWhichIdentity(t *testing.T) {
	s := start(t, callers(), placed(), nil)
	const refused = "code = PermissionDenied desc = refused; the CA's log says why"
	tests := []struct {
		name, token, identity string
		outside, inside       string // empty: issued
	}{
		{"pod of the agent's node", "agent of a", "spiffe://cluster.local/ns/shop/sa/cart", "", ""},
		{"the agent's own", "agent of a", "spiffe://cluster.local/ns/culvert-system/sa/culvert-agent", "", ""},
		{"none named: the agent's own", "agent of a", "", "", ""},
		{"pod of another node", "agent of a", "spiffe://cluster.local/ns/shop/sa/till", refused, "no live pod with the service account of spiffe://cluster.local/ns/shop/sa/till is on node a"},
		{"stolen token, wherever it is used", "agent of b", "spiffe://cluster.local/ns/shop/sa/cart", refused, "is on node b"},
		{"another trust domain", "agent of a", "spiffe://elsewhere/ns/shop/sa/cart", refused, "want spiffe://cluster.local/ns/NAMESPACE/sa/ACCOUNT"},
		{"another form", "agent of a", "spiffe://cluster.local/shop/cart", refused, "want spiffe://cluster.local/ns/NAMESPACE/sa/ACCOUNT"},
		{"longer", "agent of a", "spiffe://cluster.local/ns/shop/sa/cart/x", refused, "cart/x"},
		{"dots", "agent of a", "spiffe://cluster.local/ns/shop/sa/..", refused, "class=identity"},
		{"no SPIFFE ID", "agent of a", "cart\nissued", refused, "class=identity"},
		{"huge", "agent of a", "spiffe://cluster.local/ns/" + strings.Repeat("x", 20000), refused, "xxx…"},
		{"unknown token", "guess", "spiffe://cluster.local/ns/shop/sa/cart", refused, "token: not authenticated"},
		{"token of another account", "somebody else", "spiffe://cluster.local/ns/shop/sa/cart", refused, "culvert-system/prometheus may not ask"},
		{"token without a node", "unbound", "spiffe://cluster.local/ns/shop/sa/cart", refused, "not bound to a pod and its node"},
		{"no token", "", "spiffe://cluster.local/ns/shop/sa/cart", refused, "not that of a bearer token"},
		{"API server away for the token", "while the API server is away", "spiffe://cluster.local/ns/shop/sa/cart", "code = Unavailable", "class=unavailable"},
		{"API server away for the pods", "agent of lost", "spiffe://cluster.local/ns/shop/sa/cart", "code = Unavailable", "class=unavailable"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			answer, err := s.call(t, test.token, wire.Request{CSR: csr(t, ""), Identity: test.identity})
			if test.outside != "" {
				refusedWith(t, err, test.outside, s.log, test.inside)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := test.identity
			if want == "" {
				want = id("culvert-system", "culvert-agent").String()
			}
			got, _, err := x509svid.Verify(answer.Chain, s.authority.Bundle())
			if err != nil || got.String() != want {
				t.Fatalf("got %v, %v; want %s", got, err, want)
			}
			serial := "serial=" + answer.Chain[0].SerialNumber.Text(16)
			if !strings.Contains(s.log.String(), serial) {
				t.Errorf("log has no %s", serial)
			}
		})
	}
	if n := testutil.ToFloat64(s.metrics.refused.WithLabelValues("not_on_node")); n != 2 {
		t.Errorf("%v refusals counted for pods on other nodes, want 2", n)
	}
}

func TestCSRThatAsksForMoreIsRefused(t *testing.T) {
	s := start(t, callers(), placed(), nil)
	for _, text := range []string{"", "garbage", string(csr(t, "spiffe://cluster.local/ns/shop/sa/till"))} {
		_, err := s.call(t, "agent of a", wire.Request{CSR: []byte(text), Identity: id("shop", "cart").String()})
		refusedWith(t, err, "PermissionDenied", s.log, "class=csr")
	}
}

func TestLifeIsTheShorterOfWhatIsAskedAndAllowed(t *testing.T) {
	s := start(t, callers(), placed(), func(o *Options) { o.SVIDLife = time.Hour })
	for _, test := range []struct{ asked, want time.Duration }{
		{0, time.Hour}, {-1, time.Hour}, {24 * time.Hour, time.Hour}, {10 * time.Second, 10 * time.Second}, {1 << 62, time.Hour},
	} {
		answer, err := s.call(t, "agent of a", wire.Request{CSR: csr(t, ""), Life: test.asked})
		if err != nil {
			t.Fatal(err)
		}
		left := time.Until(answer.Chain[0].NotAfter)
		if left > test.want || left < test.want-5*time.Second {
			t.Errorf("asked for %s: %s left, want %s", test.asked, left, test.want)
		}
	}
}

func TestNoLifeBeyondWhatTheLeaderReckonsWith(t *testing.T) {
	for _, test := range []struct{ own, recorded, want time.Duration }{
		{48 * time.Hour, 24 * time.Hour, 24 * time.Hour}, {time.Hour, 24 * time.Hour, time.Hour}, {48 * time.Hour, 0, 48 * time.Hour},
	} {
		if got := shorter(test.own, test.recorded); got != test.want {
			t.Errorf("told %s, recorded %s: %s, want %s", test.own, test.recorded, got, test.want)
		}
	}
}

func TestNodeThatAsksTooOftenIsHeldBackAndOthersAreNot(t *testing.T) {
	s := start(t, callers(), placed(), func(o *Options) { o.NodeRate, o.NodeBurst = .001, 3 })
	var refused atomic.Int32
	for range 5 {
		if _, err := s.call(t, "agent of a", wire.Request{CSR: csr(t, "")}); err != nil {
			if !strings.Contains(err.Error(), "ResourceExhausted") {
				t.Fatal(err)
			}
			refused.Add(1)
		}
	}
	if refused.Load() != 2 {
		t.Errorf("%d of 5 refused, want 2", refused.Load())
	}
	if _, err := s.call(t, "agent of b", wire.Request{CSR: csr(t, "")}); err != nil {
		t.Errorf("another node: %v", err)
	}
}

func TestOversizedRequestIsRefusedBeforeItIsLookedAt(t *testing.T) {
	s := start(t, callers(), placed(), nil)
	_, err := s.call(t, "agent of a", wire.Request{CSR: make([]byte, maxRequestBytes+1)})
	if err == nil || !strings.Contains(err.Error(), "larger than max") {
		t.Fatalf("error %v", err)
	}
	_, err = s.call(t, strings.Repeat("x", 100<<10), wire.Request{CSR: csr(t, "")})
	if err == nil {
		t.Fatal("a token of 100 KiB was read")
	}
}

func TestAgentsClientGetsItsSVID(t *testing.T) {
	s := start(t, callers(), placed(), nil)
	svid, err := s.client(t, "agent of a").Issue(context.Background(), identity.Workload{ID: id("shop", "cart")})
	if err != nil {
		t.Fatal(err)
	}
	if svid.ID != id("shop", "cart") || len(svid.Certificates) != 2 {
		t.Fatalf("SVID %s with %d certificates", svid.ID, len(svid.Certificates))
	}
	stranger, err := ca.New(domain())
	if err != nil {
		t.Fatal(err)
	}
	c := client(t, s.address, ca.EncodeCertificates(stranger.Roots()), "agent of a")
	if _, err := c.Issue(context.Background(), identity.Workload{ID: id("shop", "cart")}); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Fatalf("CA below an unknown root: %v", err)
	}
}

func TestServingCertificateIsRenewedAndFollowsTheAuthority(t *testing.T) {
	first, err := ca.New(domain())
	if err != nil {
		t.Fatal(err)
	}
	current := first
	s := newServing(func() *ca.Authority { return current }, []string{"culvert-ca"}, always(24*time.Hour))
	now := time.Now()
	at := func(in time.Duration) *tls.Certificate {
		t.Helper()
		c, err := s.certificate(now.Add(in))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	one := at(0)
	if at(8*time.Hour) != one {
		t.Error("renewed before half its life")
	}
	if at(16*time.Hour) == one {
		t.Error("not renewed after half its life")
	}
	if current, err = ca.New(domain()); err != nil {
		t.Fatal(err)
	}
	if err := at(0).Leaf.CheckSignatureFrom(current.Certificate()); err != nil {
		t.Errorf("after a change of authority: %v", err)
	}
	if s.renew != s.renew.Round(0) {
		t.Error("the renewal goes by a clock that stands still while the machine sleeps")
	}
	if one = at(0); at(-10*time.Minute) == one {
		t.Error("a certificate is presented that is not valid yet")
	}
}

func TestManyAtOnce(t *testing.T) {
	s := start(t, callers(), placed(), func(o *Options) { o.NodeRate, o.NodeBurst = 1e6, 1e6 })
	c := s.client(t, "agent of a")
	var wg sync.WaitGroup
	for range 300 {
		wg.Go(func() {
			if _, err := c.Issue(context.Background(), identity.Workload{ID: id("shop", "cart")}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := testutil.ToFloat64(s.metrics.issued); n != 300 {
		t.Errorf("%v issued, want 300", n)
	}
}

// csr is one with that URI, or without a name.
func csr(t testing.TB, uri string) []byte {
	t.Helper()
	r := &x509.CertificateRequest{}
	if uri != "" {
		u, err := url.Parse(uri)
		if err != nil {
			t.Fatal(err)
		}
		r.URIs = []*url.URL{u}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, r, catest.Key(t))
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// call asks as any gRPC client can.
func (s *server) call(t *testing.T, token string, r wire.Request) (*wire.Answer, error) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.EncodeCertificates(s.authority.Roots()))
	conn, err := grpc.NewClient(s.address, grpc.WithTransportCredentials(credentials.NewTLS(
		&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "culvert-ca.culvert-system"})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, wire.AuthorizationKey, fmt.Sprint("Bearer ", token))
	return wire.NewClient(conn).CreateCertificate(ctx, r)
}
