package tunnel

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
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

// identities holds the certificates and roots that the agent has handed over. Both are replaced while
// connections go on: every handshake asks again.
type identities struct {
	mu          sync.RWMutex
	trustDomain spiffeid.TrustDomain
	accepted    map[spiffeid.TrustDomain]struct{} // our own and its aliases
	svids       map[spiffeid.ID]*tls.Certificate
	bundles     map[spiffeid.TrustDomain]*x509bundle.Bundle
}

func newIdentities() *identities {
	return &identities{
		accepted: map[spiffeid.TrustDomain]struct{}{},
		svids:    map[spiffeid.ID]*tls.Certificate{},
		bundles:  map[spiffeid.TrustDomain]*x509bundle.Bundle{},
	}
}

func (s *identities) welcome(m *control.Welcome) error {
	own, err := spiffeid.TrustDomainFromString(m.GetTrustDomain())
	if err != nil {
		return fmt.Errorf("trust domain: %w", err)
	}
	accepted := map[spiffeid.TrustDomain]struct{}{own: {}}
	for _, name := range m.GetTrustDomainAliases() {
		alias, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return fmt.Errorf("trust domain alias: %w", err)
		}
		accepted[alias] = struct{}{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trustDomain, s.accepted = own, accepted
	return nil
}

func (s *identities) setSVID(m *control.SVID) error {
	id, err := spiffeid.FromString(m.GetIdentity())
	if err != nil {
		return fmt.Errorf("svid identity: %w", err)
	}
	if len(m.GetChain()) == 0 {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.svids, id)
		return nil
	}
	var chain []byte
	for _, der := range m.GetChain() {
		chain = append(chain, der...)
	}
	svid, err := x509svid.ParseRaw(chain, m.GetKey())
	if err != nil {
		return fmt.Errorf("svid of %s: %w", id, err)
	}
	if svid.ID != id {
		return fmt.Errorf("svid of %s: certificate is for %s", id, svid.ID)
	}
	certificate := &tls.Certificate{Certificate: m.GetChain(), PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.svids[id] = certificate
	return nil
}

func (s *identities) setBundle(m *control.Bundle) error {
	domain, err := spiffeid.TrustDomainFromString(m.GetTrustDomain())
	if err != nil {
		return fmt.Errorf("bundle trust domain: %w", err)
	}
	var roots []*x509.Certificate
	for i, der := range m.GetRoots() {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("bundle of %s: root %d: %w", domain, i, err)
		}
		roots = append(roots, root)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bundles[domain] = x509bundle.FromX509Authorities(domain, roots)
	return nil
}

// certificate returns the certificate of an identity, if it can be used now.
func (s *identities) certificate(id spiffeid.ID) (*tls.Certificate, error) {
	s.mu.RLock()
	certificate := s.svids[id]
	s.mu.RUnlock()
	if certificate == nil {
		return nil, fmt.Errorf("identity %s: %w", id, errNoCertificate)
	}
	if now := time.Now(); now.After(certificate.Leaf.NotAfter) {
		return nil, fmt.Errorf("identity %s: %w at %s", id, errExpired, certificate.Leaf.NotAfter.Format(time.RFC3339))
	}
	return certificate, nil
}

func (s *identities) accepts(domain spiffeid.TrustDomain) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.accepted[domain]
	return ok
}

// GetX509BundleForTrustDomain implements x509bundle.Source. An alias without roots of its own is an
// earlier name of our own trust domain, and shares its roots.
func (s *identities) GetX509BundleForTrustDomain(domain spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if bundle := s.bundles[domain]; bundle != nil {
		return bundle, nil
	}
	if _, ok := s.accepted[domain]; ok {
		if bundle := s.bundles[s.trustDomain]; bundle != nil {
			return bundle, nil
		}
	}
	return nil, fmt.Errorf("no roots of trust domain %s", domain)
}
