package observe

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
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
	Port     uint16    `json:"port"`
	Carried  Carried   `json:"carried"`
	Peer     Peer      `json:"peer"`
	Count    uint64    `json:"count"`
	First    time.Time `json:"first"`
	Last     time.Time `json:"last"` // that one opened, or was seen open
}

type observation struct {
	of          *Watched
	port        uint16
	carried     Carried
	peer        Peer
	count       uint64
	open        uint64 // the most that were seen open at a time: some may have opened before anybody counted
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
	now       map[uint64]bool     // by cookie, as Enrolled was told
	enrolled  map[uint64]*Watched // the same, and those gone of which the kernel still knows
	kernel    map[uint64]counted  // by hash of kernelKey
}

func newObservations(now time.Time) observations {
	return observations{since: now, workloads: map[string]*Watched{}, by: map[observationKey]*observation{},
		enrolled: map[uint64]*Watched{}, kernel: map[uint64]counted{}}
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
	x := o.at(of, port, carried, peer, last)
	x.count += count
	if len(o.by) > maxObservations+slack {
		o.makeRoom()
	}
}

// at is the observation, made when there is none.
func (o *observations) at(of *Watched, port uint16, carried Carried, peer Peer, last time.Time) *observation {
	k := observationKey{of, port, carried, peer.Key()}
	x := o.by[k]
	if x == nil {
		x = &observation{of: of, port: port, carried: carried, first: last}
		o.by[k] = x
	}
	x.peer = peer
	if last.After(x.last) {
		x.last = last
	}
	return x
}

// rank is in which order there is room: anybody can cause what came to nothing, and only peers with an identity mTLS.
func (c Carried) rank() int {
	switch c {
	case Plaintext:
		return 0
	case MTLS, SameNode:
		return 1
	}
	return 2
}

// makeRoom drops the oldest of what tells least: first of ports with very many peers, whose verdict the others tell as well.
func (o *observations) makeRoom() {
	all := slices.SortedFunc(maps.Values(o.by), func(a, b *observation) int {
		return cmp.Or(cmp.Compare(a.carried.rank(), b.carried.rank()), b.last.Compare(a.last))
	})
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
		all = append(all, Observation{Workload: x.of.Workload, Port: x.port, Carried: x.carried, Peer: x.peer,
			Count: max(x.count, x.open), First: x.first, Last: x.last})
	}
	return all
}

// Since is when observing began, and Dropped when the latest plaintext was seen that had to make room for others: the
// zero time for never.
func (r *Recorder) Since() (since, dropped time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen.since, r.seen.dropped
}
