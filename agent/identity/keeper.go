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
	"golang.org/x/time/rate"
)

// Keeper has an SVID for each identity in use and a newer one at half its life, with jitter. The old one stays until
// the new one is there or it expires. It alone holds the keys, and overwrites those that are of no more use.
//
// An identity waits in a heap until something is due, then in a queue until there is room for an attempt, which runs
// in a goroutine of its own; so ten thousand identities cost no more than their certificates. Those of a Watcher have
// a goroutine each, as long as their streams.
type Keeper struct {
	issuer  Issuer
	watcher Watcher // the issuer, if it is one
	log     *slog.Logger
	notify  func(spiffeid.ID)
	onDrop  func(spiffeid.ID)
	onTried func(Attempt)
	grace   time.Duration
	holdOff time.Duration

	logLimit   *rate.Limiter
	suppressed atomic.Int64

	begin   func()        // closes begun
	begun   chan struct{} // what tunnels hold already is known, or not waited for any more
	poke    chan struct{} // something may be due earlier than it was
	opening chan struct{} // bounds the streams of a Watcher that have brought nothing yet

	mu                sync.Mutex
	kept              map[spiffeid.ID]*entry
	due               schedule
	urgent, routine   queue // due, and waiting for room: without an SVID, and with one
	issuing, renewing int   // attempts under way; all, and of those with an SVID
	issuers           certificates

	ctx   context.Context
	stop  context.CancelFunc
	tasks sync.WaitGroup
}

// Option alters a Keeper.
type Option func(*Keeper)

// Grace keeps an SVID for that long after its last user left, for pods that are replaced.
func Grace(d time.Duration) Option { return func(k *Keeper) { k.grace = d } }

// OnDrop has f called, from a goroutine of the Keeper, when an identity is not kept any more. By the time f acts, Uses
// may be true again.
func OnDrop(f func(spiffeid.ID)) Option { return func(k *Keeper) { k.onDrop = f } }

// Attempt is what came of asking the Issuer for an SVID.
type Attempt struct {
	Renewal bool          // of an identity that has one
	Took    time.Duration // 0: it failed, or a Watcher sent it unasked
	Err     error
}

// OnAttempt has f called for each attempt, from goroutines of the Keeper; it returns at once.
func OnAttempt(f func(Attempt)) Option { return func(k *Keeper) { k.onTried = f } }

// HoldOff lets the first requests wait for Begin, but no longer than d: what a tunnel still holds from an earlier agent
// need not be asked for.
func HoldOff(d time.Duration) Option { return func(k *Keeper) { k.holdOff = d } }

// NewKeeper returns a Keeper that calls notify, from goroutines of its own, when the SVID of an identity is another.
// Close ends it.
func NewKeeper(issuer Issuer, log *slog.Logger, notify func(spiffeid.ID), options ...Option) *Keeper {
	ctx, stop := context.WithCancel(context.Background())
	k := &Keeper{
		issuer: issuer, log: log, notify: notify,
		onDrop:   func(spiffeid.ID) {},
		onTried:  func(Attempt) {},
		logLimit: rate.NewLimiter(failuresPerSecond, failureBurst),
		begun:    make(chan struct{}), poke: make(chan struct{}, 1), opening: make(chan struct{}, maxIssuing),
		kept: map[spiffeid.ID]*entry{}, ctx: ctx, stop: stop,
	}
	k.watcher, _ = issuer.(Watcher)
	k.begin = sync.OnceFunc(func() { close(k.begun) })
	for _, option := range options {
		option(k)
	}
	k.tasks.Go(k.run)
	if n, ok := issuer.(Notifier); ok {
		k.tasks.Go(func() { k.watchRoots(n, n.Changed()) })
	}
	return k
}

// Begin ends the HoldOff.
func (k *Keeper) Begin() { k.begin() }

// Use counts one more user of w.ID; the first starts fetching. Each needs a Release.
func (k *Keeper) Use(w Workload) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.entry(w.ID)
	e.use(w)
	if len(e.users) == 1 {
		k.reconsider(e)
	}
}

// entry returns that of id, and makes it if there is none. The caller holds the lock, and calls reconsider.
func (k *Keeper) entry(id spiffeid.ID) *entry {
	e := k.kept[id]
	if e != nil {
		return e
	}
	now := time.Now().Round(0)
	e = &entry{id: id, index: notWaiting, idle: now, next: now}
	k.kept[id] = e
	if k.watcher != nil {
		ctx, stop := context.WithCancel(k.ctx)
		e.stream = &stream{poke: make(chan struct{}, 1)}
		k.tasks.Go(func() {
			defer stop()
			k.follow(ctx, e)
		})
	}
	return e
}

// Release counts one user less. After the last one, and the Grace, the SVID is dropped.
func (k *Keeper) Release(w Workload) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.kept[w.ID]
	if e == nil || !e.leave(w) {
		return
	}
	e.stream.leave(w)
	if len(e.users) == 0 {
		e.idle = time.Now().Round(0)
		k.reconsider(e)
	}
}

// Uses reports whether id is kept: notify may still tell of one that had its last user.
func (k *Keeper) Uses(id spiffeid.ID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.kept[id] != nil
}

// Ready returns a channel that is closed when id has an SVID, here or at a tunnel; nil if there is one, or if nobody
// uses id.
func (k *Keeper) Ready(id spiffeid.ID) <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.kept[id]
	if e == nil || e.chain != nil {
		return nil
	}
	if e.ready == nil {
		e.ready = make(chan struct{})
	}
	return e.ready
}

// Identities returns those that have an SVID with its key here.
func (k *Keeper) Identities() []spiffeid.ID {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []spiffeid.ID
	for id, e := range k.kept {
		if e.key != nil {
			all = append(all, id)
		}
	}
	return all
}

// Bundles returns the roots by trust domain, the own one first.
func (k *Keeper) Bundles() []*x509bundle.Bundle { return k.issuer.Bundles() }

// Close ends all attempts, waits for them, and forgets all keys.
func (k *Keeper) Close() {
	k.stop()
	k.tasks.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, e := range k.kept {
		e.forget()
		delete(k.kept, id)
	}
}
