package identity

import (
	"bytes"
	"context"
	"crypto/x509"
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

func inProcess(t testing.TB, life time.Duration) *InProcess {
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
	svid, err := issuer.Issue(context.Background(), Workload{ID: id})
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := x509svid.Verify(svid.Certificates, issuer.Bundles()[0])
	if err != nil || got != id {
		t.Fatalf("verified as %v, %v; want %v", got, err, id)
	}
	other := inProcess(t, time.Minute)
	if _, _, err := x509svid.Verify(svid.Certificates, other.Bundles()[0]); err == nil {
		t.Fatal("verified against the root of another authority")
	}
}

func TestIdentityOfAnotherTrustDomainIsNotSigned(t *testing.T) {
	foreign := spiffeid.RequireFromString("spiffe://elsewhere/ns/a/sa/b")
	if _, err := inProcess(t, time.Minute).Issue(context.Background(), Workload{ID: foreign}); err == nil {
		t.Fatal("signed an identity of another trust domain")
	}
}

func TestKeeperRenewsAtHalfLifeAndStopsAfterTheLastUser(t *testing.T) {
	told, dropped := make(chan spiffeid.ID, 100), make(chan spiffeid.ID, 1)
	k := NewKeeper(inProcess(t, 2*time.Second), slog.New(slog.DiscardHandler), func(id spiffeid.ID) { told <- id },
		OnDrop(func(id spiffeid.ID) { dropped <- id }))
	defer k.Close()
	id := spiffeid.RequireFromPath(domain, "/ns/default/sa/reviews")
	one, two := Workload{ID: id, Pod: "one"}, Workload{ID: id, Pod: "two"}
	k.Use(one)
	k.Use(two)
	<-told
	first, _ := k.Handover(id)
	<-told
	second, _ := k.Handover(id)
	if bytes.Equal(first.Chain[0], second.Chain[0]) || bytes.Equal(first.Key, second.Key) {
		t.Fatal("renewal brought the same certificate, or the same key")
	}
	if now := time.Now(); now.After(leaf(t, first).NotAfter) {
		t.Fatalf("renewed at %v, after the old one expired at %v", now, leaf(t, first).NotAfter)
	}
	k.Release(one)
	if !k.Uses(id) || len(k.Identities()) != 1 {
		t.Fatal("the first of two users that leaves counts as the last")
	}
	k.Release(two)
	if got := <-dropped; got != id || k.Uses(id) || len(k.Identities()) != 0 {
		t.Fatal("the last user that leaves does not count as such")
	}
}

func leaf(t *testing.T, h Handover) *x509.Certificate {
	t.Helper()
	chain, err := parse(h.Chain)
	if err != nil {
		t.Fatal(err)
	}
	return chain[0]
}

type failing struct {
	*InProcess
	left atomic.Int32
}

func (f *failing) Issue(ctx context.Context, w Workload) (*SVID, error) {
	if f.left.Add(-1) >= 0 {
		return nil, errors.New("CA is away")
	}
	return f.InProcess.Issue(ctx, w)
}

func TestKeeperRetriesWhenTheIssuerFails(t *testing.T) {
	issuer := &failing{InProcess: inProcess(t, time.Minute)}
	issuer.left.Store(2)
	svids := make(chan spiffeid.ID, 1)
	k := NewKeeper(issuer, slog.New(slog.DiscardHandler), func(id spiffeid.ID) { svids <- id })
	defer k.Close()
	k.Use(Workload{ID: spiffeid.RequireFromPath(domain, "/ns/default/sa/reviews")})
	select {
	case <-svids:
	case <-time.After(10 * time.Second):
		t.Fatal("no SVID 10 s after the issuer recovered")
	}
}
