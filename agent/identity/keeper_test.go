package identity

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
)

var domain = spiffeid.RequireTrustDomainFromString("cluster.local")

func inProcess(t *testing.T, life time.Duration) *InProcess {
	t.Helper()
	authority, err := ca.New(domain)
	if err != nil {
		t.Fatal(err)
	}
	return &InProcess{Authority: authority, Life: life}
}

func TestIssuedSVIDVerifiesAgainstTheBundle(t *testing.T) {
	issuer := inProcess(t, time.Minute)
	id := spiffeid.RequireFromPath(domain, "/ns/default/sa/reviews")
	svid, err := issuer.Issue(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := x509svid.Verify(svid.Certificates, issuer.Bundle())
	if err != nil || got != id {
		t.Fatalf("verified as %v, %v; want %v", got, err, id)
	}
	other := inProcess(t, time.Minute)
	if _, _, err := x509svid.Verify(svid.Certificates, other.Bundle()); err == nil {
		t.Fatal("verified against the root of another authority")
	}
}

func TestIdentityOfAnotherTrustDomainIsNotSigned(t *testing.T) {
	foreign := spiffeid.RequireFromString("spiffe://elsewhere/ns/a/sa/b")
	if _, err := inProcess(t, time.Minute).Issue(context.Background(), foreign); err == nil {
		t.Fatal("signed an identity of another trust domain")
	}
}

func TestKeeperRenewsAtHalfLifeAndStopsAfterTheLastUser(t *testing.T) {
	svids := make(chan *x509svid.SVID, 100)
	k := NewKeeper(inProcess(t, 2*time.Second), slog.New(slog.DiscardHandler), func(s *x509svid.SVID) { svids <- s })
	defer k.Close()
	id := spiffeid.RequireFromPath(domain, "/ns/default/sa/reviews")
	k.Use(id)
	k.Use(id)
	first := <-svids
	second := <-svids
	if first.Certificates[0].SerialNumber.Cmp(second.Certificates[0].SerialNumber) == 0 {
		t.Fatal("renewal brought the same certificate")
	}
	if now := time.Now(); now.After(first.Certificates[0].NotAfter) {
		t.Fatalf("renewed at %v, after the old one expired at %v", now, first.Certificates[0].NotAfter)
	}
	if last := k.Release(id); last || !k.Uses(id) {
		t.Fatal("the first of two users that leaves counts as the last")
	}
	if got := len(k.Current()); got != 1 {
		t.Fatalf("%d SVIDs kept while one user is left, want 1", got)
	}
	if last := k.Release(id); !last || k.Uses(id) {
		t.Fatal("the last user that leaves does not count as such")
	}
	if got := len(k.Current()); got != 0 {
		t.Fatalf("%d SVIDs kept after the last user left, want 0", got)
	}
}

type failing struct {
	*InProcess
	left atomic.Int32
}

func (f *failing) Issue(ctx context.Context, id spiffeid.ID) (*x509svid.SVID, error) {
	if f.left.Add(-1) >= 0 {
		return nil, errors.New("CA is away")
	}
	return f.InProcess.Issue(ctx, id)
}

func TestKeeperRetriesWhenTheIssuerFails(t *testing.T) {
	issuer := &failing{InProcess: inProcess(t, time.Minute)}
	issuer.left.Store(2)
	svids := make(chan *x509svid.SVID, 1)
	k := NewKeeper(issuer, slog.New(slog.DiscardHandler), func(s *x509svid.SVID) { svids <- s })
	defer k.Close()
	k.Use(spiffeid.RequireFromPath(domain, "/ns/default/sa/reviews"))
	select {
	case <-svids:
	case <-time.After(10 * time.Second):
		t.Fatal("no SVID 10 s after the issuer recovered")
	}
}
