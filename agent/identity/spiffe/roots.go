package spiffe

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/identity"
)

// roots are those known, by trust domain. A foreign trust domain stays for as long as somebody's last answer had it, also
// while the SPIFFE agent is away. The own one always stays.
type roots struct {
	own spiffeid.TrustDomain

	mu      sync.Mutex
	known   map[spiffeid.TrustDomain]*known
	told    map[spiffeid.ID]said // by the last answer about that identity; zero: about nobody in particular
	changed chan struct{}        // closed and replaced at each change
}

// teller is who gets answers about a workload. When it ends, there may already be another for the same identity.
type teller struct{ identity.Workload }

type said struct {
	by      *teller
	domains []spiffeid.TrustDomain
}

type known struct {
	der    []byte // as received: 10,000 streams tell the same
	bundle *x509bundle.Bundle
	users  int // answers that have it
}

func newRoots(own spiffeid.TrustDomain) *roots {
	return &roots{own: own, known: map[spiffeid.TrustDomain]*known{own: {bundle: x509bundle.New(own)}},
		told: map[spiffeid.ID]said{}, changed: make(chan struct{})}
}

// put takes the roots of an answer, all or none.
func (r *roots) put(t *teller, der map[spiffeid.TrustDomain][]byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	fresh := map[spiffeid.TrustDomain]*x509bundle.Bundle{}
	for td, text := range der {
		if k := r.known[td]; k != nil && bytes.Equal(k.der, text) {
			continue
		}
		b, err := x509bundle.ParseRaw(td, text)
		if err == nil && b.Empty() {
			err = errors.New("there are none")
		}
		if err != nil {
			return fmt.Errorf("roots of %s: %w", td, err)
		}
		fresh[td] = b
	}
	for td, b := range fresh {
		k := r.known[td]
		if k == nil {
			k = &known{}
			r.known[td] = k
		}
		k.der, k.bundle = bytes.Clone(der[td]), b
	}
	if gone := r.count(said{t, slices.Collect(maps.Keys(der))}); gone || len(fresh) > 0 {
		r.announce()
	}
	return nil
}

// forget is for an identity that nobody watches any more.
func (r *roots) forget(t *teller) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.told[t.ID].by == t && r.count(said{by: t}) {
		r.announce()
	}
}

// count notes which trust domains an answer had instead of those that the answer before had, and reports whether one of
// them is not in any answer now.
func (r *roots) count(now said) (gone bool) {
	for _, td := range now.domains {
		r.known[td].users++
	}
	for _, td := range r.told[now.by.ID].domains {
		k := r.known[td]
		if k.users--; k.users == 0 && td != r.own {
			delete(r.known, td)
			gone = true
		}
	}
	r.told[now.by.ID] = now
	if len(now.domains) == 0 {
		delete(r.told, now.by.ID)
	}
	return gone
}

func (r *roots) announce() {
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *roots) next() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

func (r *roots) ofOwn() *x509bundle.Bundle {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known[r.own].bundle
}

func (r *roots) all() []*x509bundle.Bundle {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := []*x509bundle.Bundle{r.known[r.own].bundle}
	for _, td := range slices.SortedFunc(maps.Keys(r.known), spiffeid.TrustDomain.Compare) {
		if td != r.own {
			all = append(all, r.known[td].bundle)
		}
	}
	return all
}
