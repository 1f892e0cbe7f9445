package tunnel

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/culvert-mesh/culvert/tunnel/control"
)

var (
	errNoCertificate = errors.New("no certificate")
	errExpired       = errors.New("certificate expired")
)

type trustDomains map[spiffeid.TrustDomain]struct{}

func (d trustDomains) has(domain spiffeid.TrustDomain) bool {
	_, ok := d[domain]
	return ok
}

func parseTrustDomains(names []string) (trustDomains, error) {
	domains := trustDomains{}
	for _, name := range names {
		domain, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return nil, err
		}
		domains[domain] = struct{}{}
	}
	return domains, nil
}

// without reports whether some of d are not in other.
func (d trustDomains) without(other trustDomains) bool {
	for domain := range d {
		if !other.has(domain) {
			return true
		}
	}
	return false
}

// svid is one certificate of an identity, with its key.
type svid struct {
	id          spiffeid.ID
	certificate *tls.Certificate
	chain       []*x509.Certificate
	key         *privateKey
	federates   trustDomains // accepted as peers beside our own
	received    time.Time
	refused     *atomic.Uint64 // connections that the identity could not have because it had expired
}

// expired is about our own clock. A certificate that is valid only from a later time on is presented all the same:
// whether the clocks agree well enough is for the peer to say.
func (v *svid) expired(now time.Time) bool { return now.After(v.certificate.Leaf.NotAfter) }

// identities holds the certificates and roots that the agent has handed over. Both are replaced while
// connections go on: every handshake asks again.
//
// A connection that is open stays open when its peer's root is no longer trusted, but carries no new stream: each
// stream asks stands, and who waits on narrowed ends connections before there is one.
type identities struct {
	trust atomic.Uint64 // changes whenever less is trusted than before

	mu          sync.RWMutex
	narrowing   chan struct{} // closed and replaced with each change of trust
	arriving    chan struct{} // closed and replaced when an identity gets its first SVID
	trustDomain spiffeid.TrustDomain
	accepted    trustDomains // our own and its aliases
	svids       map[spiffeid.ID]*svid
	bundles     map[spiffeid.TrustDomain]*x509bundle.Bundle
}

func newIdentities() *identities {
	return &identities{
		narrowing: make(chan struct{}),
		arriving:  make(chan struct{}),
		accepted:  trustDomains{},
		svids:     map[spiffeid.ID]*svid{},
		bundles:   map[spiffeid.TrustDomain]*x509bundle.Bundle{},
	}
}

func (s *identities) welcome(m *control.Welcome) error {
	own, err := spiffeid.TrustDomainFromString(m.GetTrustDomain())
	if err != nil {
		return fmt.Errorf("trust domain: %w", err)
	}
	accepted, err := parseTrustDomains(m.GetTrustDomainAliases())
	if err != nil {
		return fmt.Errorf("trust domain alias: %w", err)
	}
	accepted[own] = struct{}{}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trustDomain != own || s.accepted.without(accepted) {
		defer s.narrow()
	}
	s.trustDomain, s.accepted = own, accepted
	return nil
}

// setSVID takes an SVID, or takes one back. The message's key is overwritten in any case.
func (s *identities) setSVID(m *control.SVID) error {
	defer clear(m.GetKey())
	id, err := spiffeid.FromString(m.GetIdentity())
	if err != nil {
		return fmt.Errorf("svid identity: %w", err)
	}
	if len(m.GetChain()) == 0 {
		s.drop(id, nil)
		return nil
	}
	next, err := parseSVID(id, m)
	if err != nil {
		return fmt.Errorf("svid of %s: %w", id, err)
	}
	s.mu.Lock()
	old := s.svids[id]
	if old != nil && next.expired(next.received) && !old.expired(next.received) {
		s.mu.Unlock()
		next.key.drop()
		return fmt.Errorf("svid of %s: %w at %s: the one before stays", id, errExpired, next.certificate.Leaf.NotAfter.Format(time.RFC3339))
	}
	s.svids[id] = next
	if old == nil {
		close(s.arriving)
		s.arriving = make(chan struct{})
	} else {
		next.refused = old.refused
		if old.federates.without(next.federates) {
			s.narrow()
		}
	}
	s.mu.Unlock()
	if old != nil {
		old.key.drop()
	}
	return nil
}

func parseSVID(id spiffeid.ID, m *control.SVID) (*svid, error) {
	federates, err := parseTrustDomains(m.GetFederatesWith())
	if err != nil {
		return nil, fmt.Errorf("federation: %w", err)
	}
	parsed, err := x509svid.ParseRaw(slices.Concat(m.GetChain()...), m.GetKey())
	if err != nil {
		return nil, err
	}
	key := newPrivateKey(parsed.PrivateKey)
	if parsed.ID != id {
		key.drop()
		return nil, fmt.Errorf("certificate is for %s", parsed.ID)
	}
	return &svid{
		id: id, chain: parsed.Certificates, key: key, federates: federates, received: time.Now(), refused: new(atomic.Uint64),
		certificate: &tls.Certificate{Certificate: m.GetChain(), PrivateKey: key, Leaf: parsed.Certificates[0]},
	}, nil
}

// drop takes an identity's SVID away; with only, if it is that one.
func (s *identities) drop(id spiffeid.ID, only *svid) {
	s.mu.Lock()
	old := s.svids[id]
	if old == nil || only != nil && only != old {
		s.mu.Unlock()
		return
	}
	delete(s.svids, id)
	if len(old.federates) > 0 {
		s.narrow()
	}
	s.mu.Unlock()
	old.key.drop()
}

func (s *identities) setBundle(m *control.Bundle) error {
	domain, err := spiffeid.TrustDomainFromString(m.GetTrustDomain())
	if err != nil {
		return fmt.Errorf("bundle trust domain: %w", err)
	}
	next := x509bundle.New(domain)
	for i, der := range m.GetRoots() {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("bundle of %s: root %d: %w", domain, i, err)
		}
		next.AddX509Authority(root)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if next.Empty() && domain == s.trustDomain && s.bundles[domain] != nil {
		// An agent that has just started may not know them yet. Without roots nothing could be carried.
		return fmt.Errorf("bundle of %s: no roots of our own trust domain: those from before stay", domain)
	}
	before := s.roots(domain)
	if next.Empty() {
		delete(s.bundles, domain)
	} else {
		s.bundles[domain] = next
	}
	if lost(before, s.roots(domain)) {
		s.narrow()
	}
	return nil
}

// lost reports whether a root of before is not among those of after.
func lost(before, after *x509bundle.Bundle) bool {
	if before == nil {
		return false
	}
	return after == nil || slices.ContainsFunc(before.X509Authorities(), func(root *x509.Certificate) bool { return !after.HasX509Authority(root) })
}

// narrow tells that less is trusted than before. The caller holds the lock.
func (s *identities) narrow() {
	s.trust.Add(1)
	close(s.narrowing)
	s.narrowing = make(chan struct{})
}

// narrowed returns a channel that is closed when less is trusted than now.
func (s *identities) narrowed() <-chan struct{} {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.narrowing
}

// usable returns the SVID of an identity, if it can be used now.
func (s *identities) usable(id spiffeid.ID) (*svid, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.find(id)
}

// acquire is usable for a handshake: the key stays until it is released.
func (s *identities) acquire(id spiffeid.ID) (*svid, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	v, err := s.find(id)
	if err == nil {
		v.key.acquire()
	}
	return v, err
}

func (s *identities) find(id spiffeid.ID) (*svid, error) {
	v := s.svids[id]
	if v == nil {
		return nil, fmt.Errorf("identity %s: %w", id, errNoCertificate)
	}
	if v.expired(time.Now()) {
		v.refused.Add(1)
		return nil, fmt.Errorf("identity %s: %w at %s", id, errExpired, v.certificate.Leaf.NotAfter.Format(time.RFC3339))
	}
	return v, nil
}

// held returns every SVID, expired ones too.
func (s *identities) held() []*svid {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Collect(maps.Values(s.svids))
}

// accepts says whether members of domain may be peers of own. Roots of the domain must be known besides.
func (s *identities) accepts(own spiffeid.ID, domain spiffeid.TrustDomain) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.accepted.has(domain) {
		return true
	}
	v := s.svids[own]
	return v != nil && v.federates.has(domain)
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (s *identities) GetX509BundleForTrustDomain(domain spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if bundle := s.roots(domain); bundle != nil {
		return bundle, nil
	}
	return nil, fmt.Errorf("no roots of trust domain %s", domain)
}

// roots returns the roots of a trust domain. An alias without roots of its own is an earlier name of our own trust
// domain, and shares its roots; a trust domain that we federate with never does. The caller holds the lock.
func (s *identities) roots(domain spiffeid.TrustDomain) *x509bundle.Bundle {
	if bundle := s.bundles[domain]; bundle != nil {
		return bundle
	}
	if s.accepted.has(domain) {
		return s.bundles[s.trustDomain]
	}
	return nil
}
