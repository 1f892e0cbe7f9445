// Package logging keeps a slow log from slowing down whoever writes to it.
package logging

import (
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// queueBytes bounds the lines that wait to be written.
const queueBytes = 1 << 20

// Queue is a writer that never blocks: another goroutine passes on what is written. What finds no room is dropped and
// counted. Each Write is one line, kept or dropped as a whole.
type Queue struct {
	out     io.Writer
	wake    chan struct{} // one token: something is waiting, or the end
	done    chan struct{}
	dropped atomic.Uint64

	mu      sync.Mutex
	waiting []byte
	closed  bool
}

// NewQueue returns a queue that writes to out. Close must be called.
func NewQueue(out io.Writer) *Queue {
	q := &Queue{out: out, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go q.run()
	return q
}

// Write implements io.Writer. It does not fail.
func (q *Queue) Write(line []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || len(q.waiting)+len(line) > queueBytes {
		q.dropped.Add(1)
		return len(line), nil
	}
	q.waiting = append(q.waiting, line...)
	q.poke()
	return len(line), nil
}

// Dropped returns how many lines were not written for want of room.
func (q *Queue) Dropped() uint64 { return q.dropped.Load() }

func (q *Queue) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *Queue) run() {
	defer close(q.done)
	var lines []byte
	for range q.wake {
		q.mu.Lock()
		lines, q.waiting = q.waiting, lines[:0]
		closed := q.closed
		q.mu.Unlock()
		if len(lines) > 0 {
			_, _ = q.out.Write(lines) // a full disk loses them and nothing else
		}
		if closed {
			return
		}
	}
}

// Close writes what is waiting, for at most patience: a reader that has stopped does not stop us. What is written to
// the queue later is dropped.
func (q *Queue) Close(patience time.Duration) {
	q.mu.Lock()
	q.closed = true
	q.poke()
	q.mu.Unlock()
	select {
	case <-q.done:
	case <-time.After(patience):
	}
}
