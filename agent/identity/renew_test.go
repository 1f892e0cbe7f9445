package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// controlled is an Issuer that a test makes slow or fail. It counts.
type controlled struct {
	*InProcess
	mu        sync.Mutex
	err       error
	takes     time.Duration
	issued    []time.Time
	now, most int
	changed   chan struct{}
}

func newControlled(t *testing.T, life time.Duration) *controlled {
	return &controlled{InProcess: inProcess(t, life), changed: make(chan struct{})}
}

func (c *controlled) Issue(ctx context.Context, w Workload) (*SVID, error) {
	c.mu.Lock()
	err, takes := c.err, c.takes
	c.issued = append(c.issued, time.Now())
	c.now++
	c.most = max(c.most, c.now)
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.now--
		c.mu.Unlock()
	}()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	issuer := c.InProcess
	c.mu.Unlock()
	return issuer.Issue(ctx, w)
}

func (c *controlled) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

func (c *controlled) set(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

func (c *controlled) attempts() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.issued)
}

func (c *controlled) changeRoots() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.changed)
	c.changed = make(chan struct{})
}

// svids counts what a Keeper tells.
type svids struct {
	mu  sync.Mutex
	all []spiffeid.ID
}

func (s *svids) notify(id spiffeid.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, id)
}

func (s *svids) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}

func account(n int) spiffeid.ID {
	return spiffeid.RequireFromPathf(domain, "/ns/shop/sa/account-%d", n)
}

// pod is one of the service account.
func pod(n int) Workload {
	return Workload{ID: account(n), Namespace: "shop", Pod: fmt.Sprint("pod-", n)}
}

// The clock in these tests is that of a bubble: days pass in no time.

func TestRenewalAtHalfLifeByTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer, told := newControlled(t, 24*time.Hour), &svids{}
		k := NewKeeper(issuer, slog.New(slog.DiscardHandler), told.notify)
		defer k.Close()
		began := time.Now()
		k.Use(pod(1))
		synctest.Wait()
		if told.count() != 1 || !time.Now().Equal(began) {
			t.Fatalf("%d SVIDs after %s, want one at once", told.count(), time.Since(began))
		}
		time.Sleep(10*time.Hour + 47*time.Minute)
		synctest.Wait()
		if told.count() != 1 {
			t.Fatal("renewed before 45 % of its life")
		}
		time.Sleep(74 * time.Minute)
		synctest.Wait()
		if told.count() != 2 {
			t.Fatal("not renewed after half its life")
		}
	})
}

func TestOldSVIDStaysUntilItExpiresAndThenIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer, told := newControlled(t, time.Hour), &svids{}
		var log bytes.Buffer
		k := NewKeeper(issuer, slog.New(slog.NewTextHandler(&log, nil)), told.notify)
		k.Use(pod(1))
		synctest.Wait()
		issuer.set(errors.New("CA is away"))
		time.Sleep(59 * time.Minute)
		synctest.Wait()
		if len(k.Identities()) != 1 {
			t.Fatal("dropped before it expired")
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if len(k.Identities()) != 0 {
			t.Fatal("kept after it expired")
		}
		issuer.set(nil)
		time.Sleep(2 * maxBackoff)
		synctest.Wait()
		if len(k.Identities()) != 1 {
			t.Fatal("not issued after the CA came back")
		}
		k.Close()
		if n := strings.Count(log.String(), "SVID expired"); n != 1 {
			t.Errorf("expiry is logged %d times, want once", n)
		}
	})
}

func TestAttemptsBackOffWithJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := newControlled(t, time.Hour)
		issuer.set(errors.New("CA is away"))
		k := NewKeeper(issuer, slog.New(slog.DiscardHandler), (&svids{}).notify)
		defer k.Close()
		for i := range 10 {
			k.Use(pod(i))
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := issuer.attempts(); n < 10*80 || n > 10*260 {
			t.Errorf("%d attempts of ten identities in an hour, want one in 15 to 45 s each", n)
		}
		issuer.mu.Lock()
		defer issuer.mu.Unlock()
		at := map[time.Time]int{}
		for _, when := range issuer.issued[100:] {
			at[when.Truncate(time.Millisecond)]++
		}
		for when, n := range at {
			if n > 5 {
				t.Errorf("%d of ten attempts at %s: no jitter", n, when)
			}
		}
	})
}

func TestIssuingIsBoundedAndRenewalsLeaveRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer, told := newControlled(t, time.Hour), &svids{}
		issuer.takes = time.Second
		k := NewKeeper(issuer, slog.New(slog.DiscardHandler), told.notify)
		defer k.Close()
		for i := range 160 {
			k.Use(pod(i))
		}
		time.Sleep(10*time.Second + time.Millisecond)
		synctest.Wait()
		if issuer.most != maxIssuing || told.count() != 160 {
			t.Fatalf("%d at once, %d issued in 10 s; want %d and 160", issuer.most, told.count(), maxIssuing)
		}
		// Renewals get stuck; a new pod does not wait for them.
		issuer.mu.Lock()
		issuer.takes = 9 * time.Second
		issuer.mu.Unlock()
		time.Sleep(29 * time.Minute)
		issuer.mu.Lock()
		issuer.takes = time.Second
		issuer.mu.Unlock()
		before := told.count()
		k.Use(pod(1000))
		time.Sleep(time.Second + time.Millisecond)
		synctest.Wait()
		found := false
		for _, svid := range k.Identities() {
			found = found || svid == account(1000)
		}
		if !found {
			t.Fatalf("a new identity waited behind renewals (%d SVIDs before)", before)
		}
	})
}

func TestGraceAfterTheLastUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer, told := newControlled(t, 24*time.Hour), &svids{}
		dropped := make(chan spiffeid.ID, 10)
		k := NewKeeper(issuer, slog.New(slog.DiscardHandler), told.notify, Grace(time.Minute), OnDrop(func(id spiffeid.ID) { dropped <- id }))
		defer k.Close()
		k.Use(pod(1))
		synctest.Wait()
		k.Release(pod(1))
		time.Sleep(59 * time.Second)
		k.Use(pod(1)) // the pod's successor
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(dropped) != 0 || told.count() != 1 {
			t.Fatalf("%d dropped, %d issued; want none dropped and one issued", len(dropped), told.count())
		}
		k.Release(pod(1))
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if !k.Uses(account(1)) || len(k.Identities()) != 1 {
			t.Fatal("dropped before the grace was over")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if len(dropped) != 1 || k.Uses(account(1)) || len(k.Identities()) != 0 {
			t.Fatal("not dropped after the grace")
		}
		k.Release(pod(1)) // is not there
	})
}

func TestChangedRootsWakeWhatFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer, told := newControlled(t, 24*time.Hour), &svids{}
		issuer.set(errors.New("roots are not there yet"))
		k := NewKeeper(issuer, slog.New(slog.DiscardHandler), told.notify)
		defer k.Close()
		k.Use(pod(1))
		for range 2 {
			time.Sleep(10*time.Minute + time.Millisecond)
			synctest.Wait()
			before := issuer.attempts()
			issuer.changeRoots()
			synctest.Wait()
			if n := issuer.attempts(); n != before+1 {
				t.Fatalf("%d attempts at once, want one", n-before)
			}
		}
		issuer.set(nil)
		issuer.changeRoots()
		synctest.Wait()
		if told.count() != 1 {
			t.Fatal("not issued at once when the roots changed")
		}
		before := issuer.attempts()
		issuer.changeRoots()
		synctest.Wait()
		if issuer.attempts() != before {
			t.Fatal("issued again although nothing had failed")
		}
	})
}

func TestAThousandIdentitiesWhileTheCAIsAwayDoNotFillTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := newControlled(t, time.Hour)
		issuer.set(errors.New("CA is away"))
		var log bytes.Buffer
		k := NewKeeper(issuer, slog.New(slog.NewTextHandler(&log, nil)), (&svids{}).notify)
		for i := range 1_000 {
			k.Use(pod(i))
		}
		time.Sleep(time.Minute)
		k.Close()
		if n := bytes.Count(log.Bytes(), []byte("\n")); n > failureBurst+60*failuresPerSecond+10 {
			t.Errorf("%d lines in a minute", n)
		}
		if !strings.Contains(log.String(), "suppressed=") {
			t.Error("the log does not say what it leaves out")
		}
	})
}

func TestCloseEndsAnAttempt(t *testing.T) {
	issuer := newControlled(t, time.Hour)
	issuer.takes = time.Hour
	k := NewKeeper(issuer, slog.New(slog.DiscardHandler), (&svids{}).notify)
	for i := range 2 * maxIssuing {
		k.Use(pod(i))
	}
	done := make(chan struct{})
	go func() { k.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("still not closed")
	}
	if n := len(k.Identities()); n != 0 {
		t.Fatal(fmt.Sprint(n, " SVIDs from nowhere"))
	}
}

// Bundles implements Issuer.
func (c *controlled) Bundles() []*x509bundle.Bundle {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.InProcess.Bundles()
}
