package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/big"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
)

// An agent that starts finds what the tunnel holds, and asks the CA for none of it before it is due.
func TestWhatATunnelHoldsIsNotAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer, told := newControlled(t, 24*time.Hour), &svids{}
		k := NewKeeper(issuer, slog.New(slog.DiscardHandler), told.notify, Grace(time.Minute), HoldOff(3*time.Second))
		defer k.Close()
		const pods = 1000
		for i := range pods {
			k.Use(pod(i))
		}
		for i := range pods {
			held, err := issuer.InProcess.Issue(t.Context(), pod(i))
			if err != nil {
				t.Fatal(err)
			}
			if id, err := k.Adopt(held.Certificates); err != nil || id != account(i) {
				t.Fatalf("adopted as %v: %v", id, err)
			}
		}
		k.Begin()
		time.Sleep(10 * time.Hour)
		synctest.Wait()
		if n := issuer.attempts(); n != 0 {
			t.Fatalf("%d asked for within 10 of 24 hours, want none", n)
		}
		if n := len(k.Identities()); n != 0 {
			t.Fatalf("%d keys here, want none", n)
		}
		time.Sleep(2*time.Hour + time.Minute)
		synctest.Wait()
		if n := told.count(); n != pods {
			t.Fatalf("%d renewed after half their life, want %d", n, pods)
		}
	})
}

func TestAnotherTunnelNeedsWhatOnlyTheFirstHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer, told := newControlled(t, 24*time.Hour), &svids{}
		k := NewKeeper(issuer, slog.New(slog.DiscardHandler), told.notify, Grace(time.Minute), HoldOff(3*time.Second))
		defer k.Close()
		for i := range 3 {
			k.Use(pod(i))
			held, err := issuer.InProcess.Issue(t.Context(), pod(i))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := k.Adopt(held.Certificates); err != nil {
				t.Fatal(err)
			}
		}
		k.Begin()
		k.Need(func(id spiffeid.ID) bool { return id == account(0) })
		synctest.Wait()
		if n := len(k.Identities()); n != 2 || told.count() != 2 {
			t.Fatalf("%d fetched, want the two that the other tunnel lacks", n)
		}
	})
}

func TestHoldOffIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer, told := newControlled(t, 24*time.Hour), &svids{}
		k := NewKeeper(issuer, slog.New(slog.DiscardHandler), told.notify, HoldOff(3*time.Second))
		defer k.Close()
		k.Use(pod(1))
		time.Sleep(3*time.Second - time.Millisecond)
		synctest.Wait()
		if issuer.attempts() != 0 {
			t.Fatal("did not wait for tunnels")
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if told.count() != 1 {
			t.Fatal("waits for ever for a tunnel")
		}
	})
}

func TestAdoptedWithoutUsersIsDroppedAfterTheGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := newControlled(t, 24*time.Hour)
		dropped := make(chan spiffeid.ID, 1)
		k := NewKeeper(issuer, slog.New(slog.DiscardHandler), (&svids{}).notify, Grace(time.Minute), HoldOff(time.Second),
			OnDrop(func(id spiffeid.ID) { dropped <- id }))
		defer k.Close()
		held, err := issuer.InProcess.Issue(t.Context(), pod(1))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Adopt(held.Certificates); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if len(dropped) != 1 || k.Uses(account(1)) {
			t.Fatal("still kept")
		}
		if issuer.attempts() != 0 {
			t.Fatal("asked for although nobody uses it")
		}
	})
}

func TestTheLifeOfAnAdoptedSVIDBeganWhenItWasIssued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := newControlled(t, 24*time.Hour)
		k := NewKeeper(issuer, slog.New(slog.DiscardHandler), (&svids{}).notify)
		defer k.Close()
		held, err := issuer.InProcess.Issue(t.Context(), pod(1))
		if err != nil {
			t.Fatal(err)
		}
		issued := time.Now()
		time.Sleep(10 * time.Hour)
		if _, err := k.Adopt(held.Certificates); err != nil {
			t.Fatal(err)
		}
		k.Use(pod(1))
		all := k.Status()
		if len(all) != 1 || all[0].Obtained.After(issued) {
			t.Errorf("issued %v, status %+v", issued, all)
		}
	})
}

// What a tunnel says is not believed further than that there is no hurry.
func TestWhatCannotBeAdopted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := newControlled(t, time.Hour)
		k := NewKeeper(issuer, slog.New(slog.DiscardHandler), (&svids{}).notify)
		defer k.Close()
		other, err := (&InProcess{Authority: inProcess(t, time.Hour).Authority, Life: time.Hour}).Issue(t.Context(), pod(1))
		if err != nil {
			t.Fatal(err)
		}
		elsewhere, err := ca.New(spiffeid.RequireTrustDomainFromString("elsewhere"))
		if err != nil {
			t.Fatal(err)
		}
		foreign, err := (&InProcess{Authority: elsewhere, Life: time.Hour}).Issue(t.Context(),
			Workload{ID: spiffeid.RequireFromString("spiffe://elsewhere/ns/shop/sa/account-1")})
		if err != nil {
			t.Fatal(err)
		}
		old, err := issuer.InProcess.Issue(t.Context(), pod(1))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		for name, svid := range map[string]*SVID{"of another root": other, "of another trust domain": foreign, "expired": old} {
			if _, err := k.Adopt(svid.Certificates); err == nil {
				t.Errorf("%s: adopted", name)
			}
		}
		if _, err := k.Adopt(nil); err == nil {
			t.Error("adopted nothing")
		}
		if _, err := k.Adopt(issuer.Authority.Roots()); err == nil {
			t.Error("adopted a root")
		}
	})
}

// When the roots have changed so that an SVID leads to none of them, peers refuse it: it is replaced at once.
func TestSVIDOfARootThatIsNoMoreIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer, told := newControlled(t, 24*time.Hour), &svids{}
		k := NewKeeper(issuer, slog.New(slog.DiscardHandler), told.notify)
		defer k.Close()
		k.Use(pod(1))
		synctest.Wait()
		issuer.mu.Lock()
		issuer.InProcess = inProcess(t, 24*time.Hour)
		issuer.mu.Unlock()
		issuer.changeRoots()
		synctest.Wait()
		h, ok := k.Handover(account(1))
		if !ok || !leadsTo([]*x509.Certificate{leaf(t, h)}, k.Bundles()[0]) {
			t.Fatal("still the SVID of the old root")
		}
	})
}

func TestKeysAreOverwritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := &remembering{controlled: newControlled(t, time.Hour)}
		k := NewKeeper(issuer, slog.New(slog.DiscardHandler), (&svids{}).notify)
		defer k.Close()
		k.Use(pod(1))
		synctest.Wait()
		first := inner(k, account(1))
		if len(first) == 0 || isZero(first) {
			t.Fatal("no key is kept")
		}
		copied, _ := k.Handover(account(1))
		time.Sleep(31 * time.Minute)
		synctest.Wait()
		second := inner(k, account(1))
		if !isZero(first) {
			t.Error("the key that was replaced is still in memory")
		}
		if isZero(copied.Key) || bytes.Equal(copied.Key, second) {
			t.Error("what was handed over is not a copy of its own")
		}
		k.Release(pod(1))
		synctest.Wait()
		if !isZero(second) {
			t.Error("the key of an identity that was dropped is still in memory")
		}
		for _, key := range issuer.keys {
			if slices.ContainsFunc(key, func(w big.Word) bool { return w != 0 }) {
				t.Error("a key from the issuer is still in memory")
			}
		}
	})
}

// remembering keeps the keys that it gave away, which nobody but a test may.
type remembering struct {
	*controlled
	keys [][]big.Word
}

func (r *remembering) Issue(ctx context.Context, w Workload) (*SVID, error) {
	svid, err := r.controlled.Issue(ctx, w)
	if err != nil {
		return nil, err
	}
	key, ok := svid.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("not an ECDSA key")
	}
	//lint:ignore SA1019 it is these words that are looked at
	r.keys = append(r.keys, key.D.Bits())
	return svid, nil
}

func inner(k *Keeper, id spiffeid.ID) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.kept[id].key
}

func isZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }
