// Package identity keeps an SVID for every identity that runs on the node.
package identity

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/time/rate"
)

// Issuer gives out SVIDs and the roots to verify those of others.
type Issuer interface {
	Issue(ctx context.Context, id spiffeid.ID) (*x509svid.SVID, error)
	Bundle() *x509bundle.Bundle
}

// Notifier is an Issuer whose roots may change.
type Notifier interface {
	Issuer
	// Changed returns a channel that is closed when Bundle is to return something else than before. Ask for the
	// channel first, then for the bundle, and no change is missed.
	Changed() <-chan struct{}
}

// Keeper fetches an SVID for each identity in use and renews it at half its life, with jitter. The old one
// stays until the new one is there or it expires.
type Keeper struct {
	issuer Issuer
	log    *slog.Logger
	notify func(*x509svid.SVID)
	onDrop func(spiffeid.ID)
	grace  time.Duration
	gate   gate

	logLimit   *rate.Limiter
	suppressed atomic.Int64

	mu    sync.Mutex
	kept  map[spiffeid.ID]*entry
	ctx   context.Context
	stop  context.CancelFunc
	tasks sync.WaitGroup
}

// Option alters a Keeper.
type Option func(*Keeper)

// Grace keeps an SVID for that long after its last user left, for pods that are replaced. Release then never
// reports the last one; OnDrop tells.
func Grace(d time.Duration) Option { return func(k *Keeper) { k.grace = d } }

// OnDrop has f called, from a goroutine of the Keeper, when an identity's grace is over. By the time f acts, Uses
// may be true again.
func OnDrop(f func(spiffeid.ID)) Option { return func(k *Keeper) { k.onDrop = f } }

// NewKeeper returns a Keeper that calls notify with each new SVID, from goroutines of its own. Close ends it.
func NewKeeper(issuer Issuer, log *slog.Logger, notify func(*x509svid.SVID), options ...Option) *Keeper {
	ctx, stop := context.WithCancel(context.Background())
	k := &Keeper{
		issuer: issuer, log: log, notify: notify, gate: newGate(),
		onDrop:   func(spiffeid.ID) {},
		logLimit: rate.NewLimiter(failuresPerSecond, failureBurst),
		kept:     map[spiffeid.ID]*entry{}, ctx: ctx, stop: stop,
	}
	for _, option := range options {
		option(k)
	}
	if n, ok := issuer.(Notifier); ok {
		k.tasks.Go(func() { k.watch(n, n.Changed()) })
	}
	return k
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
	e := &entry{id: id, users: 1, stop: stop, poke: make(chan struct{}, 1)}
	k.kept[id] = e
	k.tasks.Go(func() { k.keep(ctx, e) })
}

// Release drops the SVID of id when its last user has left, and reports whether it did. With Grace it does so
// later.
func (k *Keeper) Release(id spiffeid.ID) (last bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.kept[id]
	if e == nil || e.users == 0 {
		return false
	}
	if e.users--; e.users > 0 {
		return false
	}
	if k.grace > 0 {
		e.idle = time.Now()
		e.wake()
		return false
	}
	e.stop()
	delete(k.kept, id)
	return true
}

// Uses reports whether the SVID of id is kept: notify may still bring an SVID of one that had its last user.
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

// watch tries again at once when the roots have changed: what could not be issued before may be now.
func (k *Keeper) watch(n Notifier, changed <-chan struct{}) {
	for {
		select {
		case <-k.ctx.Done():
			return
		case <-changed:
		}
		changed = n.Changed()
		k.mu.Lock()
		for _, e := range k.kept {
			if e.failing {
				e.hurry = true
				e.wake()
			}
		}
		k.mu.Unlock()
	}
}
