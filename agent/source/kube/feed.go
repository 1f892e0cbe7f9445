package kube

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// pace is how fast a feed tries again.
type pace struct {
	first, most time.Duration // between attempts that fail
	steady      time.Duration // an attempt that lasted so long starts over with the first
	absent      time.Duration // between looks for a resource that is not served, at most
	confirm     time.Duration // between two answers that a resource which had objects is gone
	distrust    time.Duration // policies that are older do not loosen anything

	ask    time.Duration // for one look at the agent's own objects
	poll   time.Duration // between two of them
	settle time.Duration // how long a DaemonSet may be missing in an upgrade
	limit  time.Duration // for an uninstall to be confirmed
}

func defaultPace() pace {
	return pace{
		first: 800 * time.Millisecond, most: 20 * time.Second, steady: 2 * time.Minute,
		absent: 30 * time.Second, confirm: 2 * time.Second, distrust: time.Minute,
		ask: time.Second, poll: 500 * time.Millisecond, settle: 8 * time.Second, limit: 10 * time.Second,
	}
}

// watchFeed follows one resource by LIST and WATCH.
type watchFeed struct {
	versions versions
	convert  converter
	health   *health
	pace     pace
	// consistent: the first list may not be an older state from a cache.
	consistent bool
}

// run delivers into the sink until ctx ends, from one goroutine at a time.
func (f *watchFeed) run(ctx context.Context, to sink) {
	// The reflector reports each error a second time; health has logged it, less often and with more sense.
	ctx = klog.NewContext(ctx, logr.Discard())
	retry := backoff{first: f.pace.first, most: f.pace.most}
	for ctx.Err() == nil {
		at, ok := f.find(ctx, to)
		if !ok {
			return
		}
		reflector := f.reflector(at, to)
		for ctx.Err() == nil {
			started := time.Now()
			err := reflector.ListAndWatchWithContext(ctx)
			if time.Since(started) > f.pace.steady {
				retry.reset()
			}
			sleep(ctx, retry.next())
			if apierrors.IsNotFound(err) && f.versions.optional {
				break // no longer served, or not in this version
			}
		}
	}
}

func (f *watchFeed) reflector(at endpoint, to sink) *cache.Reflector {
	lw := &listWatch{endpoint: at, convert: f.convert, health: f.health, consistent: f.consistent}
	return cache.NewReflectorWithOptions(lw, nil, store{sink: to, health: f.health}, cache.ReflectorOptions{
		Name: f.health.resource, TypeDescription: f.health.resource,
		Backoff: &wait.Backoff{Duration: f.pace.first, Cap: f.pace.most, Factor: 2, Jitter: 1, Steps: 30},
	})
}

// find returns the version to read, and waits for it where it need not be there.
func (f *watchFeed) find(ctx context.Context, to sink) (endpoint, bool) {
	if !f.versions.optional {
		return f.versions.open(""), true
	}
	retry := backoff{first: f.pace.first, most: f.pace.absent}
	for confirmed := 0; ctx.Err() == nil; {
		version, err := f.versions.served(ctx, confirmed < 2)
		wait := retry.next()
		switch {
		case err == nil:
			f.health.succeeded("discover")
			return f.versions.open(version), true
		case errors.Is(err, errNotServed):
			f.health.succeeded("discover")
			confirmed++
			switch confirmed {
			case 1: // not yet: it is much to forget, and of several API servers one may be a moment behind
				wait = f.pace.confirm
			case 2:
				retry.reset()
				to.replace(map[objectKey]any{})
				f.health.gone()
			default:
				f.health.gone()
			}
		default:
			f.health.failed(ctx, "discover", err)
			if confirmed < 2 {
				confirmed = 0
			}
		}
		sleep(ctx, wait)
	}
	return endpoint{}, false
}

// store passes what the reflector would store on to a sink.
type store struct {
	sink
	health *health
}

var _ cache.ReflectorStore = store{}

// Add implements cache.ReflectorStore.
func (s store) Add(o any) error {
	r, err := asRecord(o)
	if err == nil {
		s.set(r.key, r.value)
	}
	return err
}

// Update implements cache.ReflectorStore.
func (s store) Update(o any) error { return s.Add(o) }

// Delete implements cache.ReflectorStore.
func (s store) Delete(o any) error {
	r, err := asRecord(o)
	if err == nil {
		s.remove(r.key)
	}
	return err
}

// Replace implements cache.ReflectorStore. Nothing is taken over unless all of it can be.
func (s store) Replace(items []any, _ string) error {
	all := make(map[objectKey]any, len(items))
	for _, o := range items {
		r, err := asRecord(o)
		if err != nil {
			return err
		}
		all[r.key] = r.value
	}
	s.replace(all)
	s.health.read()
	return nil
}

// Resync implements cache.ReflectorStore; there is nothing to do again.
func (s store) Resync() error { return nil }

func asRecord(o any) (*record, error) {
	if r, ok := o.(*record); ok {
		return r, nil
	}
	return nil, errors.New("not a record")
}

// backoff doubles from first to most, with up to as much again by chance: a thousand agents must not come at once.
type backoff struct{ first, most, now time.Duration }

func (b *backoff) next() time.Duration {
	b.now = min(max(2*b.now, b.first), b.most)
	return b.now/2 + rand.N(b.now)
}

func (b *backoff) reset() { b.now = 0 }

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
