package observe

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// maxObservations is how many are kept, and maxPeers of one port and way of being carried.
	maxObservations = 8192
	maxPeers        = 256
	// slack is how many more there may be between two times of making room, which costs.
	slack = 1024
	// maxWorkloads bounds those that are remembered, of this node and of up to a window ago.
	maxWorkloads = 4096
	// manyNewKeys is when the kernel, which keeps 16,384, may have let go of one before it was read.
	manyNewKeys = 8192
)

// Observation is all connections of one peer to one port of a workload that went the same way.
type Observation struct {
	Workload Workload  `json:"workload"`
	Since    time.Time `json:"since"` // when the workload was first watched
	Port     uint16    `json:"port"`
	Carried  Carried   `json:"carried"`
	Peer     Peer      `json:"peer"`
	Count    uint64    `json:"count"`
	First    time.Time `json:"first"`
	Last     time.Time `json:"last"`
}

// Watched is a workload, and since when its connections are.
type Watched struct {
	Workload
	Since time.Time `json:"since"`
	Seen  time.Time `json:"seen"` // when it was last enrolled here
}

type observation struct {
	of          *Watched
	port        uint16
	carried     Carried
	peer        Peer
	count       uint64
	first, last time.Time
}

type observationKey struct {
	of      *Watched
	port    uint16
	carried Carried
	peer    string
}

type kernelKey struct {
	cookie uint64
	port   uint16
	peer   netip.Addr
}

// counted is what was read of a kernel's key: its hash is kept in its place.
type counted struct{ count, last uint64 }

type observations struct {
	since     time.Time
	dropped   time.Time // of the latest plaintext that had to make room
	workloads map[string]*Watched
	by        map[observationKey]*observation
	now       map[uint64]Workload // by cookie, as Enrolled was told
	enrolled  map[uint64]*Watched // the same, and those gone of which the kernel still knows
	kernel    map[uint64]counted  // by hash of kernelKey
}

func newObservations(now time.Time) observations {
	return observations{since: now, workloads: map[string]*Watched{}, by: map[observationKey]*observation{},
		enrolled: map[uint64]*Watched{}, kernel: map[uint64]counted{}}
}

// replaced are labels that differ between a pod and the one that takes its place.
func replaced(label string) bool {
	switch label {
	case "pod-template-hash", "controller-revision-hash", "pod-template-generation", "apps.kubernetes.io/pod-index",
		"statefulset.kubernetes.io/pod-name", "controller-uid", "batch.kubernetes.io/controller-uid", "job-name",
		"batch.kubernetes.io/job-name", "batch.kubernetes.io/job-completion-index":
		return true
	}
	return false
}

// Lasting are the labels that a pod shares with the one that takes its place.
func Lasting(labels map[string]string) map[string]string {
	labels = maps.Clone(labels)
	maps.DeleteFunc(labels, func(name, _ string) bool { return replaced(name) })
	return labels
}

// Key is the same for a pod and the one that takes its place, on any node.
func (w *Workload) Key() string {
	parts := []string{w.Namespace, w.ServiceAccount}
	for _, name := range slices.Sorted(maps.Keys(w.Labels)) {
		if !replaced(name) {
			parts = append(parts, strconv.Quote(name)+"="+strconv.Quote(w.Labels[name]))
		}
	}
	return strings.Join(parts, "/")
}

func (o *observations) workload(w Workload, now time.Time) *Watched {
	key := w.Key()
	known := o.workloads[key]
	if known == nil {
		w.Labels = Lasting(w.Labels)
		known = &Watched{Workload: w, Since: now}
		o.workloads[key] = known
	}
	known.Pod, known.Seen = w.Pod, now
	return known
}

// Key is the same for a peer and for the pod that takes its place.
func (p *Peer) Key() string {
	switch {
	case p.Identity != "":
		return p.Identity
	case p.Kind == PeerPod:
		namespace, name, _ := strings.Cut(p.Name, "/")
		return namespace + "/" + cmp.Or(p.ServiceAccount, "pod/"+name)
	}
	return p.Address.String()
}

func (o *observations) add(of *Watched, port uint16, carried Carried, peer Peer, count uint64, last time.Time) {
	k := observationKey{of, port, carried, peer.Key()}
	x := o.by[k]
	if x == nil {
		x = &observation{of: of, port: port, carried: carried, first: last}
		o.by[k] = x
	}
	x.peer, x.count = peer, x.count+count
	if last.After(x.last) {
		x.last = last
	}
	if len(o.by) > maxObservations+slack {
		o.makeRoom()
	}
}

// makeRoom drops the oldest: first of ports with very many peers, whose verdict the others tell as well.
func (o *observations) makeRoom() {
	all := slices.SortedFunc(maps.Values(o.by), func(a, b *observation) int { return b.last.Compare(a.last) })
	peers := map[observationKey]int{}
	kept := 0
	for _, x := range all {
		port := observationKey{x.of, x.port, x.carried, ""}
		peers[port]++
		if peers[port] <= maxPeers && kept < maxObservations {
			kept++
			continue
		}
		delete(o.by, observationKey{x.of, x.port, x.carried, x.peer.Key()})
		if peers[port] <= maxPeers && x.carried == Plaintext && x.last.After(o.dropped) {
			o.dropped = x.last
		}
	}
}

// expire forgets what was last seen before then.
func (o *observations) expire(before time.Time) {
	maps.DeleteFunc(o.by, func(_ observationKey, x *observation) bool { return x.last.Before(before) })
	used := map[*Watched]bool{}
	for _, x := range o.by {
		used[x.of] = true
	}
	for _, w := range o.enrolled {
		used[w] = true
	}
	over := len(o.workloads) - maxWorkloads
	maps.DeleteFunc(o.workloads, func(_ string, w *Watched) bool {
		if used[w] || over <= 0 && !w.Seen.Before(before) {
			return false
		}
		over--
		return true
	})
}

// Enrolled tells which workloads there are on the node, by the cookies of their network namespaces. The map is the
// Recorder's from then on.
func (r *Recorder) Enrolled(all map[uint64]Workload) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.seen.now = all
	for cookie, w := range all {
		r.seen.enrolled[cookie] = r.seen.workload(w, now)
	}
}

// Plaintext takes what the kernel has counted since it began to, and finds what is new. kernelNow is the time on the
// kernel's monotonic clock; peer says whose an address is, and is called for what is new alone. Counts of cookies that
// Enrolled never named wait until it does. Call it every few seconds: what the kernel forgets in between is lost.
func (r *Recorder) Plaintext(counts []Count, kernelNow uint64, peer func(netip.Addr) Peer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
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
		kernel[hash] = counted{c.Count, c.LastNanoseconds}
		if !known {
			fresh++
		}
		delta := was.news(c)
		last := now.Add(-time.Duration(kernelNow - min(c.LastNanoseconds, kernelNow)))
		if delta == 0 || now.Sub(last) > r.window {
			continue
		}
		p := peer(c.Peer)
		r.seen.add(of, c.Port, Plaintext, p, delta, last)
		e := Event{Time: now, Inbound: true, Carried: Plaintext, Open: true, Count: delta, Opened: last,
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
	}
	if fresh > manyNewKeys {
		r.seen.dropped = now
	}
	r.seen.kernel = kernel
	maps.DeleteFunc(r.seen.enrolled, func(cookie uint64, _ *Watched) bool {
		_, here := r.seen.now[cookie]
		return !here && !cookies[cookie]
	})
	r.seen.expire(now.Add(-r.window))
}

// news is how many connections are new. The kernel may have forgotten the key in between and begun anew: then some are
// missed, and none counted twice.
func (was counted) news(c Count) uint64 {
	switch {
	case c.LastNanoseconds == was.last && c.Count == was.count:
		return 0
	case c.Count > was.count:
		return c.Count - was.count
	}
	return c.Count
}

// Observations are those whose last connection came since then, by workload, port and peer.
func (r *Recorder) Observations(since time.Time) []Observation {
	all := r.observationsSince(since)
	type keyed struct {
		Observation
		workload, peer string
	}
	// Not under the lock, which those on the agent's loop wait for, and each key made once.
	keys := make([]keyed, len(all))
	for i, o := range all {
		keys[i] = keyed{o, o.Workload.Key(), o.Peer.Key()}
	}
	slices.SortFunc(keys, func(a, b keyed) int {
		return cmp.Or(cmp.Compare(a.Workload.Namespace, b.Workload.Namespace), cmp.Compare(a.workload, b.workload),
			cmp.Compare(a.Port, b.Port), cmp.Compare(a.Carried, b.Carried), b.Last.Compare(a.Last), cmp.Compare(a.peer, b.peer))
	})
	for i := range keys {
		all[i] = keys[i].Observation
	}
	return all
}

func (r *Recorder) observationsSince(since time.Time) []Observation {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]Observation, 0, len(r.seen.by))
	for _, x := range r.seen.by {
		if x.last.Before(since) {
			continue
		}
		all = append(all, Observation{Workload: x.of.Workload, Since: x.of.Since, Port: x.port, Carried: x.carried, Peer: x.peer,
			Count: x.count, First: x.first, Last: x.last})
	}
	return all
}

// Watched are the workloads that are watched, or were within the window.
func (r *Recorder) Watched() []Watched {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]Watched, 0, len(r.seen.workloads))
	for _, w := range r.seen.workloads {
		all = append(all, *w)
	}
	slices.SortFunc(all, func(a, b Watched) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Key(), b.Key()))
	})
	return all
}

// Since is when observing began, and Dropped when the latest plaintext was seen that had to make room for others: the
// zero time for never.
func (r *Recorder) Since() (since, dropped time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen.since, r.seen.dropped
}
