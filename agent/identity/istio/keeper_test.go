package istio

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/ca/wire"
)

// The CA is away for longer than all its SVIDs live. The identities of a node that lost theirs come back by
// themselves, without more requests at one time than the Keeper's gate lets through.
func TestCAAwayForLongerThanALife(t *testing.T) {
	const (
		identities = 100
		gate       = 16 // identity.maxIssuing
		life       = 3 * time.Second
		work       = 20 * time.Millisecond // of the CA for one SVID
	)
	f := startCA(t)
	var now, most, all atomic.Int32
	f.answers(func(_ context.Context, r wire.Request) (*wire.Answer, error) {
		all.Add(1)
		for n := now.Add(1); ; {
			if m := most.Load(); n <= m || most.CompareAndSwap(m, n) {
				break
			}
		}
		defer now.Add(-1)
		time.Sleep(work)
		return &wire.Answer{Chain: []*x509.Certificate{f.root.Leaf(t, key(t, r), uri(r.Identity), func(c *x509.Certificate) {
			c.NotAfter = time.Now().Add(life)
		})}}, nil
	})
	c := newClient(t, f.address, mount(t, f.root), nil)
	k := identity.NewKeeper(c, slog.New(slog.DiscardHandler), func(spiffeid.ID) {})
	defer k.Close()
	for i := range identities {
		k.Use(identity.Workload{ID: spiffeid.RequireFromSegments(domain(), "ns", "shop", "sa", fmt.Sprint("account-", i))})
	}
	has := func(want int) {
		t.Helper()
		for deadline := time.Now().Add(40 * time.Second); len(k.Identities()) != want; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d identities have an SVID, want %d", len(k.Identities()), want)
			}
		}
	}
	has(identities)
	f.stop()
	has(0)
	most.Store(0)
	before := all.Load()
	f.serve(t, f.address)
	has(identities)
	if n := most.Load(); n < 2 || n > gate {
		t.Errorf("%d requests at one time when the CA was back, want at most %d", n, gate)
	}
	t.Logf("back with %d requests, at most %d at one time", all.Load()-before, most.Load())
}
