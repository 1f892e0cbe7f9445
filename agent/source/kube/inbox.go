package kube

import (
	"sync"
	"time"
)

// sink takes what a feed delivers, from one goroutine at a time.
type sink interface {
	// replace says that these are all objects there are.
	replace(all map[objectKey]any)
	// set adds an object, or replaces it. A nil value removes it.
	set(k objectKey, v any)
	remove(k objectKey)
}

// inbox holds what arrived from one feed and was not applied yet: of each object the last version, so that it never
// holds more than there are objects.
type inbox struct {
	wake chan<- struct{}

	mu       sync.Mutex
	replaced bool // changes is all there is
	changes  map[objectKey]any
	since    time.Time // when the first of them came
}

var _ sink = (*inbox)(nil)

func (in *inbox) replace(all map[objectKey]any) {
	in.mu.Lock()
	in.replaced, in.changes = true, all
	in.note()
	in.mu.Unlock()
	in.signal()
}

func (in *inbox) set(k objectKey, v any) {
	in.mu.Lock()
	if in.changes == nil {
		in.changes = map[objectKey]any{}
	}
	in.changes[k] = v
	in.note()
	in.mu.Unlock()
	in.signal()
}

// note is called with the lock held.
func (in *inbox) note() {
	if in.since.IsZero() {
		in.since = time.Now()
	}
}

func (in *inbox) remove(k objectKey) { in.set(k, nil) }

func (in *inbox) signal() {
	select {
	case in.wake <- struct{}{}:
	default: // it is awake already
	}
}

// take empties the inbox.
func (in *inbox) take() (replaced bool, changes map[objectKey]any, since time.Time) {
	in.mu.Lock()
	defer in.mu.Unlock()
	replaced, changes, since = in.replaced, in.changes, in.since
	in.replaced, in.changes, in.since = false, nil, time.Time{}
	return replaced, changes, since
}

// table is what is known of one resource; it belongs to the goroutine of Run.
type table interface {
	set(k objectKey, v any)
	remove(k objectKey)
}

// slot joins an inbox with the table that it is for.
type slot struct {
	inbox
	table  table
	known  map[objectKey]struct{}
	synced bool
}

func newSlot(wake chan<- struct{}, t table) *slot {
	return &slot{inbox: inbox{wake: wake}, table: t, known: map[objectKey]struct{}{}}
}

// apply moves what arrived into the table, and returns when the first of it came.
func (s *slot) apply() (since time.Time) {
	replaced, changes, since := s.take()
	if replaced {
		s.synced = true
		for k := range s.known {
			if changes[k] == nil {
				s.drop(k)
			}
		}
	}
	for k, v := range changes {
		if v == nil {
			s.drop(k)
			continue
		}
		s.known[k] = struct{}{}
		s.table.set(k, v)
	}
	return since
}

func (s *slot) drop(k objectKey) {
	if _, ok := s.known[k]; ok {
		delete(s.known, k)
		s.table.remove(k)
	}
}
