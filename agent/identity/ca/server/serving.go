package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
)

// serving is the CA's own TLS certificate, which it signs itself and renews in memory at half its life, or when the
// authority changed. The authority in force signs it, so agents know its root exactly when they know that of SVIDs: an
// overlap before the first is signed. It lives no longer than an SVID, so that it has expired when its root is dropped.
type serving struct {
	authority func() *ca.Authority
	names     []string
	life      func() time.Duration

	mu      sync.Mutex
	current *tls.Certificate
	by      *ca.Authority
	renew   time.Time
}

func newServing(authority func() *ca.Authority, names []string, life func() time.Duration) *serving {
	return &serving{authority: authority, names: names, life: life}
}

func (s *serving) config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.certificate(time.Now()) },
	}
}

func (s *serving) certificate(now time.Time) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now = now.Round(0) // certificates live by the clock on the wall, also while the machine sleeps
	authority := s.authority()
	if s.current != nil && s.by == authority && now.Before(s.renew) && !now.Before(s.current.Leaf.NotBefore) {
		return s.current, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("CA's server certificate: key: %w", err)
	}
	chain, err := authority.SignServer(s.names, &key.PublicKey, s.life())
	if err != nil {
		return nil, fmt.Errorf("CA's server certificate: %w", err)
	}
	c := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, cert := range chain {
		c.Certificate = append(c.Certificate, cert.Raw)
	}
	s.current, s.by, s.renew = c, authority, now.Add(chain[0].NotAfter.Sub(now)/2)
	return c, nil
}
