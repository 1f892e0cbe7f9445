package identity

import (
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// attempts keeps what a Keeper tells of them.
type attempts struct {
	mu  sync.Mutex
	all []Attempt
}

func (a *attempts) note(one Attempt) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = append(a.all, one)
}

func (a *attempts) take() []Attempt {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := a.all
	a.all = nil
	return all
}

func TestEveryAttemptIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer, told := newControlled(t, 24*time.Hour), &attempts{}
		issuer.takes = 70 * time.Millisecond
		away := errors.New("away")
		issuer.set(away)
		k := NewKeeper(issuer, slog.New(slog.DiscardHandler), (&svids{}).notify, OnAttempt(told.note))
		defer k.Close()
		k.Use(pod(1))
		time.Sleep(100 * time.Millisecond)
		if got := told.take(); !slices.Equal(got, []Attempt{{Err: away}}) {
			t.Fatalf("an issuer that is away: %+v", got)
		}
		issuer.set(nil)
		time.Sleep(time.Second)
		if got := told.take(); !slices.Equal(got, []Attempt{{Took: issuer.takes}}) {
			t.Fatalf("the first SVID: %+v", got)
		}
		time.Sleep(12 * time.Hour)
		if got := told.take(); !slices.Equal(got, []Attempt{{Renewal: true, Took: issuer.takes}}) {
			t.Fatalf("the second SVID: %+v", got)
		}
		if got := k.Status()[0]; got.Expires.Sub(got.Obtained).Round(time.Hour) != 24*time.Hour {
			t.Errorf("obtained %v, expires %v", got.Obtained, got.Expires)
		}
	})
}

func TestEverySVIDOfAWatcherIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer, told := newPushing(t), &attempts{}
		k := NewKeeper(issuer, slog.New(slog.DiscardHandler), (&svids{}).notify, OnAttempt(told.note))
		defer k.Close()
		k.Use(pod(1))
		synctest.Wait()
		time.Sleep(time.Hour / 4)
		issuer.push(pod(1), nil)
		synctest.Wait()
		over := errors.New("over")
		issuer.push(pod(1), over)
		synctest.Wait()
		if got := told.take(); !slices.Equal(got, []Attempt{{}, {Renewal: true}, {Renewal: true, Err: over}}) {
			t.Fatalf("%+v", got)
		}
	})
}
