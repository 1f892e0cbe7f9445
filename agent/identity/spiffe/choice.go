package spiffe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

var errClosed = errors.New("the client is closed")

// choice decides which API is in use: the first in order that works. It looks again when somebody doubts that the
// present one does, and now and then when a preferred one did not.
type choice struct {
	apis   []api
	pace   pace
	log    *slog.Logger
	doubts chan struct{}

	mu      sync.Mutex
	use     *use
	reason  error         // why there is none
	changed chan struct{} // closed and replaced when use or reason change
}

// use is the time for which one API was chosen.
type use struct {
	api  api
	time context.Context
}

func newChoice(apis []api, p pace, log *slog.Logger) *choice {
	return &choice{apis: apis, pace: p, log: log, doubts: make(chan struct{}, 1), changed: make(chan struct{})}
}

// run decides until ctx ends.
func (c *choice) run(ctx context.Context) {
	var tasks sync.WaitGroup
	stop := func() {}
	defer func() {
		c.set(nil, errClosed)
		stop()
		tasks.Wait()
	}()
	pause := c.pace.retry
	for {
		best, err := c.best(ctx)
		if ctx.Err() != nil {
			return
		}
		if now := c.current(); now == nil || now.api != best {
			before := stop
			stop = c.start(ctx, &tasks, best, err)
			before()
		}
		if best != nil {
			pause = c.pace.retry
		}
		if !c.wait(ctx, best, pause) {
			return
		}
		pause = min(2*pause, c.pace.maxRetry)
	}
}

// best returns the first API that works; if none does, why not.
func (c *choice) best(ctx context.Context) (api, error) {
	var errs []error
	for _, a := range c.apis {
		ctx, cancel := context.WithTimeout(ctx, c.pace.probe)
		err := a.probe(ctx)
		cancel()
		if err == nil {
			return a, errors.Join(errs...)
		}
		errs = append(errs, fmt.Errorf("%s: %w", a, err))
	}
	return nil, errors.Join(errs...)
}

// start makes best the API in use, and returns what ends that. The reason is why no better one is.
func (c *choice) start(ctx context.Context, tasks *sync.WaitGroup, best api, reason error) (stop func()) {
	ctx, stop = context.WithCancel(ctx)
	if best == nil {
		if c.set(nil, reason) {
			c.log.Warn("no SPIFFE agent answers; trying again", "error", reason)
		}
		return stop
	}
	c.set(&use{api: best, time: ctx}, reason)
	tasks.Go(func() { best.during(ctx) })
	c.tell(best, reason)
	return stop
}

// set reports whether the API in use, or that there is none, is another than before.
func (c *choice) set(now *use, reason error) (other bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	other = c.use != nil || now != nil || c.reason == nil
	c.use, c.reason = now, reason
	close(c.changed)
	c.changed = make(chan struct{})
	return other
}

func (c *choice) tell(best api, reason error) {
	if reason == nil {
		c.log.Info("SVIDs come from a SPIFFE agent", "api", best.String())
		return
	}
	c.log.Warn("SVIDs come from a SPIFFE agent, but not by the API that is preferred", "api", best.String(), "error", reason)
}

// wait returns true when it is time to look again.
func (c *choice) wait(ctx context.Context, best api, pause time.Duration) bool {
	var again <-chan time.Time
	switch best {
	case nil:
		again = time.After(pause/2 + rand.N(pause))
	case c.apis[0]:
	default:
		again = time.After(c.pace.prefer/2 + rand.N(c.pace.prefer))
	}
	select {
	case <-ctx.Done():
		return false
	case <-again:
		return true
	case <-c.doubts:
		// Many doubt at once.
		return sleep(ctx, c.pace.retry)
	}
}

// doubt has it looked again whether the API in use works.
func (c *choice) doubt() {
	select {
	case c.doubts <- struct{}{}:
	default:
	}
}

func (c *choice) current() *use {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.use
}

// await returns the API in use, as soon as there is one.
func (c *choice) await(ctx context.Context) (*use, error) {
	ctx, cancel := context.WithTimeout(ctx, c.pace.open)
	defer cancel()
	for {
		c.mu.Lock()
		use, reason, changed := c.use, c.reason, c.changed
		c.mu.Unlock()
		switch {
		case use != nil:
			return use, nil
		case errors.Is(reason, errClosed):
			return nil, reason
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("no SPIFFE agent: %w", errors.Join(ctx.Err(), reason))
		}
	}
}
