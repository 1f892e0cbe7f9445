package identity

import (
	"cmp"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Handover is an SVID as a tunnel gets it.
type Handover struct {
	ID            spiffeid.ID
	Chain         [][]byte // DER, leaf first; not to be altered
	Key           []byte   // PKCS #8, a copy: to be overwritten after use
	FederatesWith []spiffeid.TrustDomain
}

// Handover returns the SVID of id; false if there is none with its key here.
func (k *Keeper) Handover(id spiffeid.ID) (Handover, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.kept[id]
	if e == nil || e.key == nil {
		return Handover{}, false
	}
	return Handover{ID: id, Chain: e.chain, Key: slices.Clone(e.key), FederatesWith: e.federates}, true
}

// Status is how an identity stands.
type Status struct {
	ID            spiffeid.ID
	Workloads     []Workload // its users, by namespace and name
	Chain         [][]byte   // in force, DER, leaf first; empty: none yet
	KeyHere       bool       // false: a tunnel alone has the key, from an earlier agent
	Obtained      time.Time
	Expires       time.Time // of the Chain
	Renewal       time.Time // zero: the Issuer tells by itself
	Err           error     // of the last attempt; nil when it succeeded
	FederatesWith []spiffeid.TrustDomain
}

// Issuer names where SVIDs come from.
func (k *Keeper) Issuer() string { return k.issuer.String() }

// Status returns that of all identities in use, by name.
func (k *Keeper) Status() []Status {
	all := k.statuses()
	for _, s := range all {
		slices.SortFunc(s.Workloads, func(a, b Workload) int {
			return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod))
		})
	}
	slices.SortFunc(all, func(a, b Status) int { return cmp.Compare(a.ID.String(), b.ID.String()) })
	return all
}

func (k *Keeper) statuses() []Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := make([]Status, 0, len(k.kept))
	for id, e := range k.kept {
		s := Status{
			ID: id, Chain: e.chain, KeyHere: e.key != nil, Obtained: e.obtained, Expires: e.expires, Err: e.err, FederatesWith: e.federates,
		}
		if k.watcher == nil {
			s.Renewal = e.next
		}
		for _, u := range e.users {
			s.Workloads = append(s.Workloads, u.Workload)
		}
		all = append(all, s)
	}
	return all
}
