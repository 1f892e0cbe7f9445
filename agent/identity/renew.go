package identity

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const (
	minBackoff = 250 * time.Millisecond
	maxBackoff = 30 * time.Second
	// issueTimeout ends an attempt at an issuer that does not answer.
	issueTimeout = 10 * time.Second
	// maxNap is how long a sleep may go without a look at the clock, which may be set, or stand still while the
	// machine is suspended.
	maxNap = time.Minute

	// While a CA is away, thousands of identities fail again and again.
	failuresPerSecond = 5
	failureBurst      = 50
)

const (
	// maxIssuing bounds the attempts at one time. Identities that have an SVID leave some to those that have none,
	// because a pod waits for it.
	maxIssuing  = 16
	maxRenewing = 12
)

// entry is an identity in use. All but its own goroutine hold the Keeper's lock to touch it.
type entry struct {
	id   spiffeid.ID
	stop context.CancelFunc
	poke chan struct{} // ends a nap

	users   int
	idle    time.Time // since when there are none
	svid    *x509svid.SVID
	failing bool // the last attempt did
	hurry   bool // try again at once
}

func (e *entry) wake() {
	select {
	case e.poke <- struct{}{}:
	default:
	}
}

// gate bounds how many are issued at once.
type gate struct{ all, renewals chan struct{} }

func newGate() gate {
	return gate{all: make(chan struct{}, maxIssuing), renewals: make(chan struct{}, maxRenewing)}
}

// enter waits for a place and returns what gives it back, nil if ctx ended.
func (g gate) enter(ctx context.Context, renewal bool) (leave func()) {
	take := func(c chan struct{}) bool {
		select {
		case c <- struct{}{}:
			return true
		case <-ctx.Done():
			return false
		}
	}
	if renewal && !take(g.renewals) {
		return nil
	}
	if !take(g.all) {
		if renewal {
			<-g.renewals
		}
		return nil
	}
	return func() {
		<-g.all
		if renewal {
			<-g.renewals
		}
	}
}

// keep fetches and renews until ctx ends or the grace after the last user is over. Errors back off per identity,
// so that one that cannot be issued does not hold up the others.
func (k *Keeper) keep(ctx context.Context, e *entry) {
	defer e.stop()
	backoff := minBackoff
	for {
		svid, err := k.issue(ctx, e)
		wait := jittered(backoff)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			k.failed(e, err, wait)
			backoff = min(2*backoff, maxBackoff)
		default:
			backoff = minBackoff
			k.store(e, svid)
			wait = renewIn(svid, time.Now())
			k.log.Debug("SVID issued", "identity", e.id.String(), "serial", svid.Certificates[0].SerialNumber.Text(16),
				"expires", svid.Certificates[0].NotAfter, "renewed_in", wait.String())
		}
		if !k.sleep(ctx, e, wait) {
			return
		}
	}
}

func (k *Keeper) issue(ctx context.Context, e *entry) (*x509svid.SVID, error) {
	k.mu.Lock()
	renewal := e.svid != nil
	k.mu.Unlock()
	leave := k.gate.enter(ctx, renewal)
	if leave == nil {
		return nil, ctx.Err()
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	return k.issuer.Issue(ctx, e.id)
}

func (k *Keeper) store(e *entry, svid *x509svid.SVID) {
	k.mu.Lock()
	e.svid, e.failing = svid, false
	k.mu.Unlock()
	k.notify(svid)
}

// failed logs, and forgets an SVID that has expired meanwhile: a new tunnel has no use for it.
func (k *Keeper) failed(e *entry, err error, wait time.Duration) {
	k.mu.Lock()
	e.failing = true
	expired := e.svid != nil && !time.Now().Before(e.svid.Certificates[0].NotAfter)
	fields := []any{"identity", e.id.String(), "retry_in", wait.String(), "error", err}
	if e.svid != nil {
		fields = append(fields, "old_expires", e.svid.Certificates[0].NotAfter)
	}
	if expired {
		e.svid = nil
	}
	k.mu.Unlock()
	if expired {
		k.log.Error("SVID expired and is not renewed: new connections of its pods are refused", fields...)
		return
	}
	if !k.logLimit.Allow() {
		k.suppressed.Add(1)
		return
	}
	if n := k.suppressed.Swap(0); n > 0 {
		fields = append(fields, "suppressed", n)
	}
	k.log.Error("SVID not issued", fields...)
}

// sleep returns true when the wait is over, or cut short; false when the entry has ended.
func (k *Keeper) sleep(ctx context.Context, e *entry, wait time.Duration) bool {
	until := time.Now().Round(0).Add(wait) // by the clock on the wall
	for {
		left := time.Until(until)
		nap, ended := k.look(e, left)
		if ended {
			k.onDrop(e.id)
			return false
		}
		if nap <= 0 {
			return true
		}
		timer := time.NewTimer(nap)
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-e.poke:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// look returns how long to nap, 0 to try at once. It drops an entry that nobody has used for the grace.
func (k *Keeper) look(e *entry, left time.Duration) (nap time.Duration, ended bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e.hurry {
		e.hurry = false
		return 0, false
	}
	nap = min(left, maxNap)
	if e.users > 0 || k.kept[e.id] != e {
		return nap, false
	}
	grace := k.grace - time.Since(e.idle)
	if grace > 0 {
		return min(nap, grace), false
	}
	delete(k.kept, e.id)
	return 0, true
}

func jittered(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// renewIn is half of the life that is left, shortened by up to a tenth so that many identities issued at once
// do not come back at once.
func renewIn(svid *x509svid.SVID, now time.Time) time.Duration {
	half := svid.Certificates[0].NotAfter.Sub(now) / 2
	if half <= 0 {
		return minBackoff
	}
	return half - time.Duration(rand.Int64N(int64(half)/10+1))
}
