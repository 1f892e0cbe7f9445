package server

import "sync"

// places are those of all, of which one address has no more than its share. Agents and everything else on a node may have
// the node's address; and where traffic to the CA is masqueraded, several nodes may have one.
type places struct {
	most, share int

	mu    sync.Mutex
	count int
	by    map[string]int // address
}

func newPlaces(most, share int) *places {
	return &places{most: most, share: share, by: map[string]int{}}
}

func (p *places) enter(from string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.count >= p.most || p.by[from] >= p.share {
		return false
	}
	p.count++
	p.by[from]++
	return true
}

func (p *places) leave(from string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count--
	if p.by[from]--; p.by[from] == 0 {
		delete(p.by, from)
	}
}
