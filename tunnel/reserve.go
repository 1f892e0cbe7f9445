package tunnel

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/tunnel/control"
)

const (
	reserveLow       = 16
	reserveAsk       = 32
	reserveMost      = 512 // more than this is not kept
	reserveWaiters   = 4096
	reserveWait      = 5 * time.Second
	reserveAskAgain  = time.Second
	reserveAskAtOnce = control.MaxFiles
)

var (
	errReserveExhausted = errors.New("no socket: too many connections wait for one")
	errReserveWait      = errors.New("no socket: the agent sent none in time")
	errWorkloadGone     = errors.New("workload is gone")
)

// reserve keeps sockets of one pod and family that the agent made ahead of need: unconnected, inside the
// pod's network namespace, exempt from redirection.
type reserve struct {
	ask func(count uint32) // must not block

	mu      sync.Mutex
	free    []*os.File
	waiters []chan *os.File
	asked   time.Time // zero: nothing is under way
	closed  bool
}

// get takes a socket, waiting for the agent if there is none.
func (r *reserve) get(ctx context.Context) (*os.File, error) {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil, errWorkloadGone
	}
	if n := len(r.free); n > 0 {
		f := r.free[n-1]
		r.free = r.free[:n-1]
		r.refill()
		r.mu.Unlock()
		return f, nil
	}
	if len(r.waiters) >= reserveWaiters {
		r.mu.Unlock()
		return nil, errReserveExhausted
	}
	waiter := make(chan *os.File, 1)
	r.waiters = append(r.waiters, waiter)
	r.refill()
	r.mu.Unlock()
	return r.wait(ctx, waiter)
}

func (r *reserve) wait(ctx context.Context, waiter chan *os.File) (*os.File, error) {
	timeout := time.NewTimer(reserveWait)
	defer timeout.Stop()
	again := time.NewTicker(reserveAskAgain)
	defer again.Stop()
	for {
		select {
		case f, ok := <-waiter:
			if !ok {
				return nil, errWorkloadGone
			}
			return f, nil
		case <-again.C:
			r.kick()
		case <-timeout.C:
			return r.giveUp(waiter, errReserveWait)
		case <-ctx.Done():
			return r.giveUp(waiter, ctx.Err())
		}
	}
}

// giveUp leaves the queue; a socket that was handed over in the meantime goes to the next.
func (r *reserve) giveUp(waiter chan *os.File, reason error) (*os.File, error) {
	r.mu.Lock()
	if i := slices.Index(r.waiters, waiter); i >= 0 {
		r.waiters = slices.Delete(r.waiters, i, i+1)
	}
	r.mu.Unlock()
	select {
	case f, ok := <-waiter:
		if ok {
			r.put([]*os.File{f})
		}
	default:
	}
	return nil, reason
}

// put adds sockets, those who wait first.
func (r *reserve) put(files []*os.File) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = time.Time{}
	for _, f := range files {
		switch {
		case r.closed || len(r.waiters) == 0 && len(r.free) >= reserveMost:
			_ = f.Close()
		case len(r.waiters) > 0:
			r.waiters[0] <- f
			r.waiters = r.waiters[1:]
		default:
			r.free = append(r.free, f)
		}
	}
	if len(files) > 0 { // none came: those who wait ask again in a while
		r.refill()
	}
}

// refill asks for more when the reserve runs low. The caller holds the lock.
func (r *reserve) refill() {
	if r.closed || len(r.free) >= reserveLow || time.Since(r.asked) < reserveAskAgain {
		return
	}
	r.asked = time.Now()
	r.ask(uint32(min(reserveAsk+len(r.waiters), reserveAskAtOnce)))
}

func (r *reserve) kick() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refill()
}

// reconnected forgets what was asked of an agent that is gone, and asks the new one.
func (r *reserve) reconnected() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = time.Time{}
	r.refill()
}

// size returns how many sockets are ready.
func (r *reserve) size() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.free)
}

func (r *reserve) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	control.CloseFiles(r.free)
	for _, waiter := range r.waiters {
		close(waiter)
	}
	r.free, r.waiters = nil, nil
}
