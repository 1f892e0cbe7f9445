package identity

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// pushing is a Watcher whose SVIDs a test pushes.
type pushing struct {
	*InProcess
	mu      sync.Mutex
	streams map[Workload]chan error // nil renews, anything else ends the stream
	opened  []Workload
	refuse  error
}

func newPushing(t *testing.T) *pushing {
	return &pushing{InProcess: inProcess(t, time.Hour), streams: map[Workload]chan error{}}
}

func (p *pushing) Watch(ctx context.Context, w Workload, got func(*SVID)) error {
	p.mu.Lock()
	refuse := p.refuse
	p.opened = append(p.opened, w)
	events := make(chan error)
	p.streams[w] = events
	p.mu.Unlock()
	if refuse != nil {
		return refuse
	}
	for {
		svid, err := p.Issue(ctx, w)
		if err != nil {
			return err
		}
		got(svid)
		select {
		case err := <-events:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *pushing) push(w Workload, err error) {
	p.mu.Lock()
	events := p.streams[w]
	p.mu.Unlock()
	events <- err
}

func (p *pushing) setRefusal(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = err
}

func (p *pushing) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.opened)
}

func TestWatcherRenewsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer, told := newPushing(t), &svids{}
		k := NewKeeper(issuer, slog.New(slog.DiscardHandler), told.notify)
		defer k.Close()
		k.Use(pod(1))
		synctest.Wait()
		for i := range 3 {
			if told.count() != i+1 {
				t.Fatalf("%d told, want %d", told.count(), i+1)
			}
			issuer.push(pod(1), nil)
			synctest.Wait()
		}
		time.Sleep(50 * time.Minute)
		synctest.Wait()
		if issuer.count() != 1 {
			t.Errorf("%d streams, want the first alone", issuer.count())
		}
	})
}

// SVIDs are shared by pods of a service account, but a stream is that of one pod.
func TestAnotherPodTakesOverTheStreamOfOneThatGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer, told := newPushing(t), &svids{}
		k := NewKeeper(issuer, slog.New(slog.DiscardHandler), told.notify, Grace(time.Minute))
		defer k.Close()
		one, two := Workload{ID: account(1), UID: "one"}, Workload{ID: account(1), UID: "two"}
		k.Use(one)
		synctest.Wait()
		k.Use(two)
		k.Release(one)
		synctest.Wait()
		if issuer.count() != 2 || issuer.opened[1] != two {
			t.Fatalf("streams for %v, want a second for pod two at once", issuer.opened)
		}
		// No pod for some seconds: the SVID stays, and no stream is open.
		k.Release(two)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if len(k.Identities()) != 1 || issuer.count() != 2 {
			t.Fatal("not kept without a stream during the grace")
		}
		three := Workload{ID: account(1), UID: "three"}
		k.Use(three)
		synctest.Wait()
		if issuer.count() != 3 || issuer.opened[2] != three {
			t.Fatalf("streams for %v, want a third for pod three", issuer.opened)
		}
		k.Release(three)
		time.Sleep(61 * time.Second)
		synctest.Wait()
		if k.Uses(account(1)) {
			t.Fatal("kept after the grace")
		}
	})
}

func TestBrokenStreamIsOpenedAgainAndTheLastSVIDStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer, told := newPushing(t), &svids{}
		k := NewKeeper(issuer, slog.New(slog.DiscardHandler), told.notify)
		defer k.Close()
		k.Use(pod(1))
		synctest.Wait()
		issuer.setRefusal(errors.New("the agent of the other system is away"))
		issuer.push(pod(1), errors.New("stream broke"))
		time.Sleep(59 * time.Minute)
		synctest.Wait()
		if n := issuer.count(); n < 30 || n > 400 {
			t.Errorf("%d attempts in an hour, want backoff, to one in 15 to 45 s at most", n)
		}
		if len(k.Identities()) != 1 {
			t.Fatal("the last SVID is not kept")
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if len(k.Identities()) != 0 {
			t.Fatal("kept after it expired")
		}
		issuer.setRefusal(nil)
		time.Sleep(2 * maxBackoff)
		synctest.Wait()
		if len(k.Identities()) != 1 {
			t.Fatal("no SVID after the other system came back")
		}
	})
}

// A stream that brings nothing must not hold a place for ever.
func TestSilentStreamsDoNotBlockOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer, told := &silent{pushing: newPushing(t), about: account(1000)}, &svids{}
		k := NewKeeper(issuer, slog.New(slog.DiscardHandler), told.notify)
		defer k.Close()
		for i := range 2 * maxIssuing {
			k.Use(pod(i))
		}
		k.Use(pod(1000))
		time.Sleep(2*issueTimeout + time.Second)
		synctest.Wait()
		if told.count() != 1 {
			t.Fatalf("%d told, want the one that has something to say", told.count())
		}
	})
}

// silent says nothing of any identity but one.
type silent struct {
	*pushing
	about spiffeid.ID
}

func (s *silent) Watch(ctx context.Context, w Workload, got func(*SVID)) error {
	if w.ID == s.about {
		return s.pushing.Watch(ctx, w, got)
	}
	<-ctx.Done()
	return ctx.Err()
}
