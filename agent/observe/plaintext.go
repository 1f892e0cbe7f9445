package observe

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Count is what the kernel has counted of a peer's plaintext connections to a port, since it began to.
type Count struct {
	Cookie uint64
	Port   uint16
	Peer   netip.Addr
	Count  uint64
	// LastNanoseconds is the time of the last one on the kernel's monotonic clock.
	LastNanoseconds uint64
}

// Open is how many plaintext connections of a peer to a port are open.
type Open struct {
	Port  uint16
	Peer  netip.Addr
	Count uint64
}

// reading is one look at what the kernel counts.
type reading struct {
	now       time.Time
	kernelNow uint64 // the same on the kernel's monotonic clock
	peer      func(netip.Addr) Peer
}

// Plaintext takes what the kernel has counted since it began to, and finds what is new. kernelNow is the time on the
// kernel's monotonic clock; peer says whose an address is, and is called for what is new alone. Counts of cookies that
// nobody ever named wait until somebody does. Call it every few seconds: what the kernel forgets in between is lost.
func (r *Recorder) Plaintext(counts []Count, kernelNow uint64, peer func(netip.Addr) Peer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := reading{time.Now(), kernelNow, peer}
	kernel := make(map[uint64]counted, len(counts))
	cookies := map[uint64]bool{}
	fresh := 0
	for _, c := range counts {
		hash := hashOf(kernelKey{c.Cookie, c.Port, c.Peer})
		was, known := r.seen.kernel[hash]
		of := r.seen.enrolled[c.Cookie]
		if of == nil {
			if known { // the agent has just been started: it will be enrolled again
				kernel[hash] = was
			}
			continue
		}
		cookies[c.Cookie] = true
		if !known {
			fresh++
		}
		kernel[hash] = r.counted(&c, of, was, &at)
	}
	if fresh > manyNewKeys {
		r.seen.dropped = at.now
	}
	r.seen.kernel = kernel
	maps.DeleteFunc(r.seen.enrolled, func(cookie uint64, _ *Watched) bool {
		return !r.seen.now[cookie] && !cookies[cookie]
	})
	r.seen.expire(at.now.Add(-r.window))
}

// Leaving takes the last counts of a workload, before the kernel forgets it.
func (r *Recorder) Leaving(cookie uint64, counts []Count, kernelNow uint64, peer func(netip.Addr) Peer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	of := r.seen.enrolled[cookie]
	if of == nil {
		if slices.ContainsFunc(counts, func(c Count) bool { return c.Cookie == cookie }) {
			r.seen.dropped = time.Now() // of a pod that nobody ever named
		}
		return
	}
	at := reading{time.Now(), kernelNow, peer}
	for _, c := range counts {
		if c.Cookie != cookie {
			continue
		}
		// Kept until the next look, which may have been taken before this one.
		hash := hashOf(kernelKey{c.Cookie, c.Port, c.Peer})
		r.seen.kernel[hash] = r.counted(&c, of, r.seen.kernel[hash], &at)
	}
}

// counted records what is new in a count, and returns it as what was read.
func (r *Recorder) counted(c *Count, of *Watched, was counted, at *reading) counted {
	if c.LastNanoseconds < was.last {
		return was // read before that
	}
	read := counted{c.Count, c.LastNanoseconds}
	delta := was.news(c)
	last := at.now.Add(-time.Duration(at.kernelNow - min(c.LastNanoseconds, at.kernelNow)))
	if delta == 0 || at.now.Sub(last) > r.window {
		return read
	}
	p := at.peer(c.Peer)
	r.seen.add(of, c.Port, Plaintext, p, delta, last)
	e := Event{Time: at.now, Inbound: true, Carried: Plaintext, Open: true, Count: delta, Opened: last,
		Source:      End{Address: c.Peer},
		Destination: End{Port: c.Port, Workload: of.Namespace + "/" + of.Pod}}
	switch p.Kind {
	case PeerPod:
		e.Source.Workload = p.Name
	case PeerNode:
		e.Source.Node = p.Name
	}
	r.edges.add(&e, true)
	r.ring.add(e)
	return read
}

// news is how many connections are new. The kernel may have forgotten the key in between and begun anew: then some are
// missed, and none counted twice.
func (was counted) news(c *Count) uint64 {
	switch {
	case c.LastNanoseconds == was.last && c.Count == was.count:
		return 0
	case c.Count > was.count:
		return c.Count - was.count
	}
	return c.Count
}

// Opened takes which plaintext connections are open at a workload now. One that lasts is seen here only: it may have
// opened before the workload was enrolled, or long ago.
func (r *Recorder) Opened(cookie uint64, open []Open, peer func(netip.Addr) Peer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	of := r.seen.enrolled[cookie]
	if of == nil {
		return
	}
	now := time.Now()
	for _, c := range open {
		x := r.seen.at(of, c.Port, Plaintext, peer(c.Peer), now)
		x.open = max(x.open, c.Count)
	}
	if len(r.seen.by) > maxObservations+slack {
		r.seen.makeRoom()
	}
}
