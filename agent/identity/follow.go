package identity

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// openingPatience is how long a stream that brings nothing counts as one that is being opened: pods without a registration
// entry must not hold up the others.
const openingPatience = 2 * time.Second

// stream is what an entry has more when its Issuer is a Watcher. The Keeper's lock guards it.
type stream struct {
	poke   chan struct{}
	pod    Workload // whom it is open for
	cancel context.CancelCauseFunc
}

func (s *stream) wake() {
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

// leave ends the stream if it is open for w.
func (s *stream) leave(w Workload) {
	if s != nil && s.cancel != nil && s.pod == w {
		s.cancel(errReplaced)
	}
}

// errReplaced ends a Watch whose pod has gone.
var errReplaced = errors.New("its pod is gone")

// follow keeps a Watcher's stream open for one of the identity's pods. When that pod goes, another one's takes its
// place; when there is none left, the SVID stays for the grace.
func (k *Keeper) follow(ctx context.Context, e *entry) {
	for {
		wait, ended := k.attend(ctx, e)
		if ended || ctx.Err() != nil {
			return
		}
		timer := time.NewTimer(min(wait, maxNap))
		select {
		case <-ctx.Done():
		case <-e.stream.poke:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// attend does what is due and returns when to come back.
func (k *Keeper) attend(ctx context.Context, e *entry) (wait time.Duration, ended bool) {
	k.mu.Lock()
	w, used := e.user()
	now := time.Now().Round(0)
	graceEnds := e.idle.Add(k.grace)
	if !used && !now.Before(graceEnds) {
		k.drop(e)
		k.mu.Unlock()
		return 0, true
	}
	next := e.next
	if e.err != nil && next.Sub(now) > longestWait {
		next = now // the clock was set back
	}
	k.mu.Unlock()
	switch {
	case !used:
		return graceEnds.Sub(now), false
	case next.After(now):
		return next.Sub(now), false
	}
	err := k.watchFor(ctx, e, w)
	if ctx.Err() != nil || errors.Is(err, errReplaced) {
		return 0, false
	}
	return k.failed(e, err), false
}

// watchFor returns when the stream has ended.
func (k *Keeper) watchFor(ctx context.Context, e *entry, w Workload) error {
	// Until the first SVID is there it counts as an attempt, of which only so many run at once.
	select {
	case k.opening <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	opened := sync.OnceFunc(func() { <-k.opening })
	defer opened()
	defer time.AfterFunc(openingPatience, opened).Stop()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	k.mu.Lock()
	if !e.uses(w) {
		k.mu.Unlock()
		return errReplaced
	}
	e.stream.pod, e.stream.cancel = w, cancel
	k.mu.Unlock()
	var bad atomic.Pointer[error]
	began := time.Now()
	err := k.watcher.Watch(ctx, w, func(s *SVID) {
		opened()
		var took time.Duration
		if !began.IsZero() {
			took, began = time.Since(began), time.Time{}
		}
		if err := k.store(e, s, took); err != nil {
			bad.Store(&err)
			cancel(err)
		}
	})
	k.mu.Lock()
	e.stream.cancel = nil
	k.mu.Unlock()
	if cause := context.Cause(ctx); errors.Is(cause, errReplaced) {
		return cause
	}
	if b := bad.Load(); b != nil {
		return *b
	}
	return err
}
