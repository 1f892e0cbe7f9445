package kube

import "sync"

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
}

var _ sink = (*inbox)(nil)

func (in *inbox) replace(all map[objectKey]any) {
	in.mu.Lock()
	in.replaced, in.changes = true, all
	in.mu.Unlock()
	in.signal()
}

func (in *inbox) set(k objectKey, v any) {
	in.mu.Lock()
	if in.changes == nil {
		in.changes = map[objectKey]any{}
	}
	in.changes[k] = v
	in.mu.Unlock()
	in.signal()
}

func (in *inbox) remove(k objectKey) { in.set(k, nil) }

func (in *inbox) signal() {
	select {
	case in.wake <- struct{}{}:
	default: // it is awake already
	}
}

// take empties the inbox.
func (in *inbox) take() (replaced bool, changes map[objectKey]any) {
	in.mu.Lock()
	defer in.mu.Unlock()
	replaced, changes = in.replaced, in.changes
	in.replaced, in.changes = false, nil
	return replaced, changes
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

// apply moves what arrived into the table.
func (s *slot) apply() {
	replaced, changes := s.take()
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
}

func (s *slot) drop(k objectKey) {
	if _, ok := s.known[k]; ok {
		delete(s.known, k)
		s.table.remove(k)
	}
}
