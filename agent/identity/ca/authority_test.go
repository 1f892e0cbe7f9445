package ca_test

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/catest"
)

func domain() spiffeid.TrustDomain {
	return spiffeid.RequireTrustDomainFromString("cluster.local")
}

func TestLoadedAuthoritySignsWhatLeadsToItsRoot(t *testing.T) {
	root := catest.Root(t, "root")
	middle := root.Intermediate(t, "middle")
	low := middle.Intermediate(t, "low")
	older := catest.Root(t, "older root")
	expired := catest.Root(t, "expired root", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	generated, err := ca.Generate(domain())
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name         string
		material     ca.Material
		chain, roots int
	}{
		{"generated", generated, 1, 1},
		{"root alone, no chain", ca.Material{Cert: catest.CertPEM(root), Key: root.KeyPEM(t), Roots: catest.CertPEM(root)}, 1, 1},
		{"root among older ones", ca.Material{Cert: catest.CertPEM(root), Key: root.KeyPEM(t),
			Roots: catest.CertPEM(older, root)}, 1, 2},
		{"root beside one that has expired", ca.Material{Cert: catest.CertPEM(root), Key: root.KeyPEM(t),
			Roots: catest.CertPEM(expired, root)}, 1, 1},
		{"intermediate directly below", ca.Material{Cert: catest.CertPEM(middle), Key: middle.KeyPEM(t),
			Roots: catest.CertPEM(root)}, 2, 1},
		{"two intermediates, chain with root as openssl users write it", ca.Material{Cert: catest.CertPEM(low), Key: low.KeyPEM(t),
			Chain: catest.CertPEM(low, middle, root), Roots: catest.CertPEM(older, root)}, 3, 2},
		{"two intermediates, chain in ca-cert.pem", ca.Material{Cert: catest.CertPEM(low, middle), Key: low.KeyPEM(t),
			Roots: catest.CertPEM(root)}, 3, 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a, err := ca.Load(domain(), test.material)
			if err != nil {
				t.Fatal(err)
			}
			id := spiffeid.RequireFromPath(domain(), "/ns/a/sa/b")
			chain, err := a.Sign(id, &catest.Key(t).PublicKey, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			if got, _, err := x509svid.Verify(chain, a.Bundle()); err != nil || got != id {
				t.Fatalf("verified as %v, %v; want %v", got, err, id)
			}
			if len(chain) != test.chain || len(a.Roots()) != test.roots {
				t.Errorf("chain of %d with %d roots, want %d and %d", len(chain), len(a.Roots()), test.chain, test.roots)
			}
			if last := chain[len(chain)-1]; string(last.RawIssuer) != string(a.Roots()[0].RawSubject) {
				t.Errorf("first root is %q, the chain leads to %q", a.Roots()[0].Subject, last.Issuer)
			}
		})
	}
}

func TestLoadRefusesWhatWouldNotVerify(t *testing.T) {
	root := catest.Root(t, "root")
	middle := root.Intermediate(t, "middle")
	other := catest.Root(t, "other")
	with := func(f func(*ca.Material)) ca.Material {
		m := ca.Material{Cert: catest.CertPEM(middle), Key: middle.KeyPEM(t), Chain: catest.CertPEM(middle), Roots: catest.CertPEM(root)}
		f(&m)
		return m
	}
	below := func(c *catest.CA) ca.Material {
		return ca.Material{Cert: catest.CertPEM(c), Key: c.KeyPEM(t), Roots: catest.CertPEM(root)}
	}
	short := catest.Root(t, "short", func(c *x509.Certificate) { c.MaxPathLenZero = true })
	shortened := short.Intermediate(t, "too deep")
	tests := []struct {
		name     string
		material ca.Material
		want     string
	}{
		{"empty", ca.Material{}, "ca-cert.pem: is missing"},
		{"no key", with(func(m *ca.Material) { m.Key = nil }), "ca-key.pem: is missing"},
		{"garbage key", with(func(m *ca.Material) { m.Key = []byte("secret") }), "ca-cert.pem and ca-key.pem do not go together"},
		{"key of another", with(func(m *ca.Material) { m.Key = other.KeyPEM(t) }), "do not go together"},
		{"no roots", with(func(m *ca.Material) { m.Roots = nil }), "root-cert.pem: is missing"},
		{"root of another", with(func(m *ca.Material) { m.Roots = catest.CertPEM(other) }), `"CN=middle" does not lead to a root in root-cert.pem`},
		{"garbage chain", with(func(m *ca.Material) { m.Chain = []byte("x") }), "cert-chain.pem: is missing, or holds no PEM"},
		{"key among the roots", with(func(m *ca.Material) { m.Roots = append(m.Roots, m.Key...) }), `root-cert.pem: holds a "PRIVATE KEY"`},
		{"expired", below(root.Intermediate(t, "old", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })), `"CN=old" expired`},
		{"not yet valid", below(root.Intermediate(t, "new", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) })), `"CN=new" is not valid before`},
		{"no root but an expired one", with(func(m *ca.Material) {
			m.Roots = catest.CertPEM(catest.Root(t, "past", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }))
		}), `"CN=past" expired`},
		{"leaf", below(root.Intermediate(t, "leaf", func(c *x509.Certificate) { c.IsCA = false })), `"CN=leaf" is not a CA`},
		{"may not sign", below(root.Intermediate(t, "mute", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature })), `key usage of "CN=mute" does not allow`},
		{"path too long", ca.Material{Cert: catest.CertPEM(shortened), Key: shortened.KeyPEM(t), Roots: catest.CertPEM(short)}, "do not verify"},
		{"other trust domain only", below(root.Intermediate(t, "foreign", func(c *x509.Certificate) {
			c.PermittedURIDomains, c.PermittedDNSDomainsCritical = []string{"elsewhere"}, true
		})), "for trust domain cluster.local do not verify"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := ca.Load(domain(), test.material)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v, want %q in it", err, test.want)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Fatalf("error %q quotes the key", err)
			}
		})
	}
}

func TestLeafNeverOutlivesWhatIsAboveIt(t *testing.T) {
	root := catest.Root(t, "root")
	middle := root.Intermediate(t, "middle", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(time.Hour) })
	a, err := ca.Load(domain(), ca.Material{Cert: catest.CertPEM(middle), Key: middle.KeyPEM(t), Roots: catest.CertPEM(root)})
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.Sign(spiffeid.RequireFromPath(domain(), "/ns/a/sa/b"), &catest.Key(t).PublicKey, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if chain[0].NotAfter.After(middle.Cert.NotAfter) {
		t.Fatalf("leaf expires at %v, its issuer at %v", chain[0].NotAfter, middle.Cert.NotAfter)
	}
}

func TestServerCertificateIsNoSVID(t *testing.T) {
	a, err := ca.New(domain())
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.SignServer([]string{"culvert-ca.culvert-system.svc"}, &catest.Key(t).PublicKey, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if id, _, err := x509svid.Verify(chain, a.Bundle()); err == nil {
		t.Fatalf("verified as %s", id)
	}
	if err := chain[0].VerifyHostname("culvert-ca.culvert-system.svc"); err != nil {
		t.Fatal(err)
	}
}
