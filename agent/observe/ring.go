package observe

import (
	"context"
	"errors"
	"time"
)

const (
	// ringSize is how many events are kept.
	ringSize = 4096
	// maxFollowers bounds who may wait for new ones at a time: each holds a connection of the agent's socket.
	maxFollowers = 8
)

// ErrTooManyFollowers says that no more can wait for events.
var ErrTooManyFollowers = errors.New("too many follow the connections of this node at one time")

// ring holds the latest events, each where its sequence number says.
type ring struct {
	events    []Event
	first     uint64        // sequence of the first event of this process
	next      uint64        // of the one to come
	arrived   chan struct{} // closed when it does
	followers int
}

// newRing begins its numbers with the time, so that they go on where those of the last process ended.
func newRing(now time.Time) ring {
	begin := uint64(now.UnixMicro())
	return ring{events: make([]Event, ringSize), first: begin, next: begin, arrived: make(chan struct{})}
}

func (r *ring) add(e Event) {
	e.Sequence = r.next
	r.events[r.next%ringSize] = e
	r.next++
	close(r.arrived)
	r.arrived = make(chan struct{})
}

func (r *ring) oldest() uint64 { return max(r.first, r.next-min(r.next, ringSize)) }

// Events are those that are kept and came after the one with that number; the number of the latest; and how many came
// in between that are kept no more. With 0 it is all that are kept.
func (r *Recorder) Events(after uint64) (events []Event, last, missed uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ring.after(after)
}

func (r *ring) after(after uint64) (events []Event, last, missed uint64) {
	from := after + 1
	oldest := r.oldest()
	switch {
	case from > r.next: // of a process whose clock was ahead
		from = oldest
	case from < oldest:
		if after >= r.first { // what an earlier process had is not known
			missed = oldest - from
		}
		from = oldest
	}
	for ; from < r.next; from++ {
		events = append(events, r.events[from%ringSize])
	}
	return events, r.next - 1, missed
}

// Wait is Events, but waits until there is one, or ctx ends: then there is none.
func (r *Recorder) Wait(ctx context.Context, after uint64) (events []Event, last, missed uint64, err error) {
	r.mu.Lock()
	if r.ring.followers >= maxFollowers {
		r.mu.Unlock()
		return nil, 0, 0, ErrTooManyFollowers
	}
	r.ring.followers++
	defer func() {
		r.mu.Lock()
		r.ring.followers--
		r.mu.Unlock()
	}()
	for {
		events, last, missed = r.ring.after(after)
		arrived := r.ring.arrived
		r.mu.Unlock()
		if len(events) > 0 {
			return events, last, missed, nil
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			return nil, last, 0, nil
		}
		r.mu.Lock()
	}
}

// LostEvents is how many events never arrived.
func (r *Recorder) LostEvents() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lost
}
