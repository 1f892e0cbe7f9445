// Package identity keeps an SVID for every identity that runs on the node.
package identity

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Issuer gives out SVIDs and the roots to verify those of others.
type Issuer interface {
	Issue(ctx context.Context, id spiffeid.ID) (*x509svid.SVID, error)
	Bundle() *x509bundle.Bundle
}

const (
	minBackoff = 250 * time.Millisecond
	maxBackoff = 30 * time.Second
	// issueTimeout ends an attempt at an issuer that does not answer.
	issueTimeout = 10 * time.Second
)

// Keeper fetches an SVID for each identity in use and renews it at half its life, with jitter. The old one
// stays valid until the new one is there.
type Keeper struct {
	issuer Issuer
	log    *slog.Logger
	notify func(*x509svid.SVID)

	mu    sync.Mutex
	kept  map[spiffeid.ID]*entry
	ctx   context.Context
	stop  context.CancelFunc
	tasks sync.WaitGroup
}

type entry struct {
	users int
	svid  *x509svid.SVID
	stop  context.CancelFunc
}

// NewKeeper returns a Keeper that calls notify with each new SVID, from goroutines of its own. Close ends it.
func NewKeeper(issuer Issuer, log *slog.Logger, notify func(*x509svid.SVID)) *Keeper {
	ctx, stop := context.WithCancel(context.Background())
	return &Keeper{issuer: issuer, log: log, notify: notify, kept: map[spiffeid.ID]*entry{}, ctx: ctx, stop: stop}
}

// Use counts one more user of id; the first starts fetching. Each needs a Release.
func (k *Keeper) Use(id spiffeid.ID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e := k.kept[id]; e != nil {
		e.users++
		return
	}
	ctx, stop := context.WithCancel(k.ctx)
	e := &entry{users: 1, stop: stop}
	k.kept[id] = e
	k.tasks.Add(1)
	go func() {
		defer k.tasks.Done()
		k.keep(ctx, id, e)
	}()
}

// Release drops the SVID of id when its last user has left, and reports whether that was the last.
func (k *Keeper) Release(id spiffeid.ID) (last bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.kept[id]
	if e == nil {
		return false
	}
	if e.users--; e.users > 0 {
		return false
	}
	e.stop()
	delete(k.kept, id)
	return true
}

// Uses reports whether id has a user: notify may still bring an SVID of one that had its last.
func (k *Keeper) Uses(id spiffeid.ID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.kept[id] != nil
}

// Current returns the SVIDs that are there.
func (k *Keeper) Current() []*x509svid.SVID {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []*x509svid.SVID
	for _, e := range k.kept {
		if e.svid != nil {
			all = append(all, e.svid)
		}
	}
	return all
}

// Bundle returns the roots of the own trust domain.
func (k *Keeper) Bundle() *x509bundle.Bundle { return k.issuer.Bundle() }

// Close ends all renewals and waits for them.
func (k *Keeper) Close() {
	k.stop()
	k.tasks.Wait()
}

// keep fetches and renews until ctx ends. Errors back off per identity, so that one that cannot be issued
// does not hold up the others.
func (k *Keeper) keep(ctx context.Context, id spiffeid.ID, e *entry) {
	backoff := minBackoff
	for {
		svid, err := k.issue(ctx, id)
		wait := backoff
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			k.log.Error("SVID not issued", "identity", id.String(), "retry_in", wait.String(), "error", err)
			backoff = min(2*backoff, maxBackoff)
		default:
			backoff = minBackoff
			k.store(e, svid)
			wait = renewIn(svid, time.Now())
			k.log.Debug("SVID issued", "identity", id.String(), "serial", svid.Certificates[0].SerialNumber.Text(16),
				"expires", svid.Certificates[0].NotAfter, "renewed_in", wait.String())
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func (k *Keeper) issue(ctx context.Context, id spiffeid.ID) (*x509svid.SVID, error) {
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	return k.issuer.Issue(ctx, id)
}

func (k *Keeper) store(e *entry, svid *x509svid.SVID) {
	k.mu.Lock()
	e.svid = svid
	k.mu.Unlock()
	k.notify(svid)
}

// renewIn is half of the life that is left, shortened by up to a tenth so that many identities issued at once
// do not come back at once.
func renewIn(svid *x509svid.SVID, now time.Time) time.Duration {
	half := svid.Certificates[0].NotAfter.Sub(now) / 2
	if half <= 0 {
		return minBackoff
	}
	return half - time.Duration(rand.Int64N(int64(half)/10+1))
}
