package identity

import (
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

func TestTenThousandIdentitiesOfOneAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const identities = 10_000
		issuer, told := newControlled(t, 24*time.Hour), &svids{}
		issuer.takes = 2 * time.Millisecond
		k := NewKeeper(issuer, slog.New(slog.DiscardHandler), told.notify)
		defer k.Close()
		began := time.Now()
		for i := range identities {
			k.Use(pod(i))
		}
		sleep := func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
		}
		sleep(2 * time.Second)
		if n := len(k.Identities()); n != identities {
			t.Fatalf("%d SVIDs in 2 s with a CA that takes 2 ms, want %d", n, identities)
		}
		// The renewals are spread over more than an hour: no minute has more than a few percent of them.
		sleep(13 * time.Hour)
		perMinute := map[int]int{}
		issuer.mu.Lock()
		for _, at := range issuer.issued[identities:] {
			perMinute[int(at.Sub(began).Minutes())]++
		}
		issuer.mu.Unlock()
		if told.count() != 2*identities {
			t.Fatalf("%d issued after half a life, want each twice", told.count())
		}
		for minute, n := range perMinute {
			if n > identities/25 {
				t.Errorf("%d renewals in minute %d: a burst", n, minute)
			}
		}
	})
}

// A CA that is away for longer than a renewal interval, and then for longer than a life.
func TestCAThatIsAwayForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const identities = 100
		issuer, told := newControlled(t, 24*time.Hour), &svids{}
		k := NewKeeper(issuer, slog.New(slog.DiscardHandler), told.notify)
		defer k.Close()
		for i := range identities {
			k.Use(pod(i))
		}
		sleep := func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
		}
		sleep(time.Hour)
		// Over the next renewal: nobody is without an SVID, and the CA is not stormed when it comes back.
		issuer.set(errors.New("CA is away"))
		sleep(16 * time.Hour)
		if n := len(k.Identities()); n != identities {
			t.Fatalf("%d SVIDs while the CA is away for less than a life, want %d", n, identities)
		}
		if n := issuer.attempts(); n > 100*identities {
			t.Errorf("%d attempts of %d identities in 4 h", n, identities)
		}
		issuer.set(nil)
		sleep(2 * maxPatientBackoff)
		if issuer.most > maxIssuing {
			t.Errorf("%d requests at one time, want at most %d", issuer.most, maxIssuing)
		}
		if n := told.count(); n != 2*identities {
			t.Errorf("%d issued after the CA came back, want %d", n, 2*identities)
		}
		// For longer than a life: all are gone, and all come back.
		issuer.set(errors.New("CA is away"))
		sleep(25 * time.Hour)
		if n := len(k.Identities()); n != 0 {
			t.Errorf("%d SVIDs kept after they expired", n)
		}
		issuer.set(nil)
		sleep(time.Minute)
		if n := len(k.Identities()); n != identities {
			t.Errorf("%d SVIDs a minute after the CA came back, want %d", n, identities)
		}
	})
}

// What failed while the clock was ahead is not tried again at that time of day, but now.
func TestClockThatIsSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer, told := newControlled(t, time.Hour), &svids{}
		issuer.set(errors.New("CA is away"))
		k := NewKeeper(issuer, slog.New(slog.DiscardHandler), told.notify)
		defer k.Close()
		k.Use(pod(1))
		synctest.Wait()
		issuer.set(nil)
		k.mu.Lock()
		e := k.kept[account(1)]
		e.next = time.Now().Add(2 * time.Hour)
		k.reconsider(e)
		k.mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		if told.count() != 0 {
			t.Fatal("the test proves nothing")
		}
		k.retryFailed()
		synctest.Wait()
		if told.count() != 1 {
			t.Fatal("not tried again")
		}
	})
	now := time.Now()
	if setBack(now, now.Add(time.Minute)) {
		t.Error("a clock that goes on is taken for one that was set back")
	}
}
