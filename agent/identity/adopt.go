package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Adopt takes over an SVID that a tunnel still has from an earlier agent, so that it is renewed when it is due and
// not at once. The key stays with the tunnel. One whose identity nobody uses is dropped after the Grace.
func (k *Keeper) Adopt(chain []*x509.Certificate) (spiffeid.ID, error) {
	if len(chain) == 0 {
		return spiffeid.ID{}, errors.New("adopt SVID: no certificate")
	}
	id, err := x509svid.IDFromCert(chain[0])
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("adopt SVID: %w", err)
	}
	now, expires := time.Now().Round(0), chain[0].NotAfter
	switch own := k.Bundles()[0]; {
	case !id.MemberOf(own.TrustDomain()):
		return id, fmt.Errorf("adopt SVID %s: not of trust domain %s", id, own.TrustDomain())
	case !now.Before(expires):
		return id, fmt.Errorf("adopt SVID %s: expired at %s", id, expires.Format(time.RFC3339))
	case !leadsTo(chain, own):
		return id, fmt.Errorf("adopt SVID %s: does not lead to a root of today", id)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.entry(id)
	if e.chain == nil {
		e.put(k.issuers.shared(chain), expires, nil, nil)
		if began := chain[0].NotBefore; began.Before(now) {
			e.obtained = began // its life did not begin with this agent
		}
		e.next = now.Add(renewIn(expires, now))
		if k.watcher != nil {
			e.next = now
		}
	}
	k.reconsider(e)
	return id, nil
}

// Need fetches at once what only other tunnels hold than the one that has these.
func (k *Keeper) Need(has func(spiffeid.ID) bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, e := range k.kept {
		if e.chain != nil && e.key == nil && !e.running && !has(id) {
			k.hasten(e)
		}
	}
}

// watchRoots tries again at once when the roots have changed: what could not be issued before may be now, and what
// does not lead to one of them any more is of no use.
func (k *Keeper) watchRoots(n Notifier, changed <-chan struct{}) {
	for {
		select {
		case <-k.ctx.Done():
			return
		case <-changed:
		}
		changed = n.Changed()
		for _, id := range k.outdated(k.Bundles()[0]) {
			k.mu.Lock()
			if e := k.kept[id]; e != nil {
				k.hasten(e)
			}
			k.mu.Unlock()
		}
	}
}

// outdated returns the identities that need an attempt now that the roots are these. It verifies without the lock,
// because that takes a while for thousands.
func (k *Keeper) outdated(roots *x509bundle.Bundle) []spiffeid.ID {
	var failing []spiffeid.ID
	chains := map[spiffeid.ID][][]byte{}
	k.mu.Lock()
	for id, e := range k.kept {
		switch {
		case e.err != nil:
			failing = append(failing, id)
		case e.chain != nil:
			chains[id] = e.chain
		}
	}
	k.mu.Unlock()
	for id, ders := range chains {
		if chain, err := parse(ders); err != nil || !leadsTo(chain, roots) {
			failing = append(failing, id)
		}
	}
	return failing
}

// leadsTo reports whether peers that have these roots accept the chain. Without roots nobody can tell.
func leadsTo(chain []*x509.Certificate, roots *x509bundle.Bundle) bool {
	if roots.Empty() {
		return true
	}
	at := time.Now()
	if at.Before(chain[0].NotBefore) {
		at = chain[0].NotBefore // by the CA's clock
	}
	_, _, err := x509svid.Verify(chain, roots, x509svid.WithTime(at))
	return err == nil
}

func parse(ders [][]byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		chain = append(chain, c)
	}
	return chain, nil
}
