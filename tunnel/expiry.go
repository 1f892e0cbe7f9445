package tunnel

import (
	"context"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	expiryTick   = time.Second
	expiryRepeat = time.Minute // between lines about one identity, and how long an expired SVID is kept that nobody needs
	lateTenths   = 8           // of its life: by then an SVID should have been replaced
)

// expiryWatch tells of SVIDs that are not replaced in time. It belongs to one goroutine.
type expiryWatch struct {
	log     *slog.Logger
	stats   *Stats
	needed  func(spiffeid.ID) bool
	late    map[spiffeid.ID]*svid // those that have been warned of
	outages map[spiffeid.ID]*outage
	counted map[spiffeid.ID]uint64 // of svid.refused
}

// outage is the time in which an identity has nothing but an expired SVID.
type outage struct {
	told    time.Time
	refused uint64 // not told yet
}

func newExpiryWatch(log *slog.Logger, stats *Stats, needed func(spiffeid.ID) bool) *expiryWatch {
	return &expiryWatch{log: log, stats: stats, needed: needed,
		late: map[spiffeid.ID]*svid{}, outages: map[spiffeid.ID]*outage{}, counted: map[spiffeid.ID]uint64{}}
}

// watchExpiry looks at the SVIDs until ctx ends, and drops those that are of no more use.
func (t *tunnel) watchExpiry(ctx context.Context) {
	w := newExpiryWatch(t.log, t.Stats, t.needs)
	tick := time.NewTicker(expiryTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			for _, v := range w.look(now, t.ids.held()) {
				t.ids.drop(v.id, v)
			}
		}
	}
}

// needs says whether a workload has an identity.
func (t *tunnel) needs(id spiffeid.ID) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, w := range t.workloads {
		if w.spec.Load().identity == id {
			return true
		}
	}
	return false
}

// look returns what has expired and nobody needs.
func (w *expiryWatch) look(now time.Time, held []*svid) (useless []*svid) {
	current := make(map[spiffeid.ID]*svid, len(held))
	for _, v := range held {
		current[v.id] = v
		refused := w.count(v)
		switch {
		case !v.expired(now):
			w.good(v, now)
		case w.needed(v.id):
			w.expired(v, refused, now)
		case now.Sub(v.certificate.Leaf.NotAfter) > expiryRepeat:
			useless = append(useless, v)
		}
	}
	forget(w.late, current)
	forget(w.outages, current)
	forget(w.counted, current)
	w.stats.SVIDs.Store(int64(len(held)))
	w.stats.ExpiredSVIDs.Store(int64(len(w.outages)))
	return useless
}

// count returns how many connections were refused since the last time.
func (w *expiryWatch) count(v *svid) uint64 {
	all := v.refused.Load()
	n := all - w.counted[v.id]
	if all < w.counted[v.id] {
		n = all // the identity was taken back and given anew
	}
	if n > 0 {
		w.counted[v.id] = all
		w.stats.RefusedExpired.Add(n)
	}
	return n
}

func (w *expiryWatch) good(v *svid, now time.Time) {
	if _, was := w.outages[v.id]; was {
		delete(w.outages, v.id)
		w.log.Warn("SVID replaced: new mTLS connections again", "identity", v.id.String(),
			"expires", v.certificate.Leaf.NotAfter, "refused_in_all", v.refused.Load())
	}
	if w.late[v.id] != v && v.late(now) && w.needed(v.id) {
		w.late[v.id] = v
		w.log.Warn("SVID not replaced although most of its life is over", "identity", v.id.String(),
			"serial", v.certificate.Leaf.SerialNumber.Text(16), "expires", v.certificate.Leaf.NotAfter)
	}
}

func (w *expiryWatch) expired(v *svid, refused uint64, now time.Time) {
	o := w.outages[v.id]
	if o == nil {
		w.outages[v.id] = &outage{told: now}
		w.log.Error("SVID expired: no new mTLS connections in either direction", "identity", v.id.String(),
			"serial", v.certificate.Leaf.SerialNumber.Text(16), "expired", v.certificate.Leaf.NotAfter, "refused", refused)
		return
	}
	o.refused += refused
	if now.Sub(o.told) < expiryRepeat {
		return
	}
	w.log.Error("SVID still expired: no new mTLS connections in either direction", "identity", v.id.String(),
		"expired", v.certificate.Leaf.NotAfter, "refused", o.refused)
	o.told, o.refused = now, 0
}

// late reports whether most of an SVID's life is over. The life begins when we got it: authorities write an earlier
// beginning, for the sake of slow clocks, which would be all of a life of seconds.
func (v *svid) late(now time.Time) bool {
	leaf, begin := v.certificate.Leaf, v.received
	if leaf.NotBefore.After(begin) {
		begin = leaf.NotBefore
	}
	return now.After(begin.Add(leaf.NotAfter.Sub(begin) / 10 * lateTenths))
}

// forget deletes what is of identities that are not among current.
func forget[V any](m map[spiffeid.ID]V, current map[spiffeid.ID]*svid) {
	for id := range m {
		if current[id] == nil {
			delete(m, id)
		}
	}
}
