package svidcheck

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/culvert-mesh/culvert/agent/identity/ca/catest"
)

func TestCheck(t *testing.T) {
	domain := spiffeid.RequireTrustDomainFromString("cluster.local")
	want := spiffeid.RequireFromPath(domain, "/ns/shop/sa/cart")
	root, stranger := catest.Root(t, "root"), catest.Root(t, "stranger")
	middle := root.Intermediate(t, "middle")
	bundle := x509bundle.FromX509Authorities(domain, []*x509.Certificate{root.Cert})
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	key := catest.Key(t)
	now := time.Now()
	named := func(id string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			if u, err := url.Parse(id); err == nil {
				c.URIs = []*url.URL{u}
			}
		}
	}
	svid := func(by *catest.CA, key crypto.Signer, above []*catest.CA, alter ...func(*x509.Certificate)) *x509svid.SVID {
		s := &x509svid.SVID{ID: want, PrivateKey: key, Certificates: []*x509.Certificate{
			by.Leaf(t, key.Public(), append([]func(*x509.Certificate){named(want.String())}, alter...)...)}}
		for _, c := range above {
			s.Certificates = append(s.Certificates, c.Cert)
		}
		return s
	}
	of := func(alter func(*x509.Certificate)) *x509svid.SVID { return svid(root, key, nil, alter) }
	// as signs what catest.CA.Leaf does not.
	as := func(alter func(*x509.Certificate)) *x509svid.SVID {
		c := root.Intermediate(t, "", alter)
		return &x509svid.SVID{ID: want, PrivateKey: c.Key, Certificates: []*x509.Certificate{c.Cert}}
	}
	otherKey := of(func(*x509.Certificate) {})
	otherKey.PrivateKey = catest.Key(t)
	tests := []struct {
		name string
		svid *x509svid.SVID
		want string // empty: taken
	}{
		{"good", svid(root, key, nil), ""},
		{"RSA", svid(root, rsaKey, nil), ""},
		{"with an intermediate", svid(middle, key, []*catest.CA{middle}), ""},
		{"five minutes ahead", of(func(c *x509.Certificate) { c.NotBefore = now.Add(5 * time.Minute) }), ""},
		{"no extended key usage", of(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{} }), ""},
		{"empty", &x509svid.SVID{}, "missing"},
		{"another key", otherKey, "another key"},
		{"another identity", of(named("spiffe://cluster.local/ns/shop/sa/admin")), "is for spiffe://cluster.local/ns/shop/sa/admin"},
		{"another trust domain", of(named("spiffe://elsewhere/ns/shop/sa/cart")), "is for spiffe://elsewhere/ns/shop/sa/cart"},
		{"no identity", of(func(c *x509.Certificate) { c.URIs = nil }), "does not verify"},
		{"intermediate missing", svid(middle, key, nil), "does not verify"},
		{"root that came along", svid(stranger, key, []*catest.CA{stranger}), "does not verify"},
		{"expired", of(func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }), "expired"},
		{"six minutes ahead", of(func(c *x509.Certificate) { c.NotBefore = now.Add(6 * time.Minute) }), "clocks"},
		{"two years", of(func(c *x509.Certificate) { c.NotAfter = now.Add(2 * 365 * 24 * time.Hour) }), "longer than"},
		{"a CA", as(named(want.String())), "CA flag"},
		{"for servers only", of(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "both ends"},
		{"cannot sign", as(func(c *x509.Certificate) {
			named(want.String())(c)
			c.IsCA, c.KeyUsage = false, x509.KeyUsageKeyEncipherment
		}), "digitalSignature"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			switch err := Check(test.svid, want, bundle, now); {
			case err == nil && test.want != "":
				t.Errorf("taken, want %q", test.want)
			case err != nil && (test.want == "" || !strings.Contains(err.Error(), test.want)):
				t.Errorf("refused: %v, want %q", err, test.want)
			}
		})
	}
}
