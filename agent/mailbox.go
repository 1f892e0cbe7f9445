package agent

import (
	"sync"

	"github.com/culvert-mesh/culvert/agent/source"
)

// mailbox has room for one snapshot: while the loop is busy, a newer one takes its place and its changes over. So
// policies never stand in a queue behind what is out of date.
type mailbox struct {
	mu       sync.Mutex
	snapshot *source.Snapshot
}

// put reports whether the box was empty.
func (m *mailbox) put(s *source.Snapshot) (empty bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	empty = m.snapshot == nil
	if !empty {
		s = s.Since(m.snapshot)
	}
	m.snapshot = s
	return empty
}

func (m *mailbox) take() *source.Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.snapshot
	m.snapshot = nil
	return s
}

// deliver is called by the source.
func (a *Agent) deliver(s *source.Snapshot) {
	if a.mail.put(s) {
		a.post(func() { a.apply(a.mail.take()) })
	}
}
