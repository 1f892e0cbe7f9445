package ca_test

import (
	"crypto/x509"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/catest"
)

const skew = 5 * time.Minute

// TestClocksFiveMinutesApart makes root, intermediate and leaf in one moment, which is the worst: none is any older than
// the leaf.
func TestClocksFiveMinutesApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, root := fresh(t)
		id := spiffeid.RequireFromPath(domain(), "/ns/a/sa/b")
		chain, err := a.Sign(id, &catest.Key(t).PublicKey, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		server, err := a.SignServer([]string{"culvert-ca"}, &catest.Key(t).PublicKey, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct {
			name string
			peer time.Duration // its clock, beside that of the CA
			want bool
		}{
			{"five minutes behind", -skew, true},
			{"more", -skew - time.Second, false},
			{"five minutes ahead", skew, true},
			{"five minutes ahead at half the life, when it is renewed", 30*time.Minute + skew, true},
			{"expired by the peer's clock alone", time.Hour + time.Second, false},
		} {
			at := time.Now().Add(test.peer)
			_, _, err := x509svid.Verify(chain, a.Bundle(), x509svid.WithTime(at))
			if got := err == nil; got != test.want {
				t.Errorf("SVID, peer's clock %s: %v", test.name, err)
			}
			options := x509.VerifyOptions{DNSName: "culvert-ca", Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: at}
			options.Roots.AddCert(root.Certificate())
			options.Intermediates.AddCert(server[1])
			if _, err := server[0].Verify(options); (err == nil) != test.want {
				t.Errorf("CA's server, agent's clock %s: %v", test.name, err)
			}
		}
	})
}

// fresh is an authority with an intermediate, made now.
func fresh(t *testing.T) (*ca.Authority, *ca.Root) {
	t.Helper()
	r, err := ca.NewRoot(domain(), 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	m, err := r.Intermediate(domain(), 12*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	a, err := ca.Load(domain(), m)
	if err != nil {
		t.Fatal(err)
	}
	return a, r
}
