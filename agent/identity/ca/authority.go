// Package ca issues X.509 SVIDs. An Authority lives in this process's memory; server offers it over gRPC, and kube
// keeps it in a cluster.
package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	// clockSkew is how far in the past a certificate's life begins, for peers whose clock is behind.
	clockSkew = 5 * time.Minute
	rootLife  = 10 * 365 * 24 * time.Hour
)

// Authority is a certificate authority of one trust domain. It never changes, so it is safe for concurrent use; a
// new root or intermediate is a new Authority.
type Authority struct {
	trustDomain spiffeid.TrustDomain
	cert        *x509.Certificate   // signs
	above       []*x509.Certificate // cert and what is between it and its root; empty if cert is a root
	roots       []*x509.Certificate // those to be trusted; the first is the one that cert leads to
	key         crypto.Signer
}

// New makes an authority with a new self-signed root, which is gone with the process.
func New(td spiffeid.TrustDomain) (*Authority, error) {
	m, err := Generate(td)
	if err != nil {
		return nil, err
	}
	defer clear(m.Key)
	return Load(td, m)
}

// FromPEM makes an authority from a root certificate and its key, both PEM.
func FromPEM(td spiffeid.TrustDomain, cert, key []byte) (*Authority, error) {
	return Load(td, Material{Cert: cert, Key: key, Roots: cert})
}

// TrustDomain returns the trust domain whose identities it signs.
func (a *Authority) TrustDomain() spiffeid.TrustDomain { return a.trustDomain }

// Bundle returns the roots that peers of this trust domain verify against.
func (a *Authority) Bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(a.trustDomain, a.roots)
}

// Roots returns the roots; the first is the one that this authority's certificates lead to.
func (a *Authority) Roots() []*x509.Certificate { return slices.Clone(a.roots) }

// Certificate returns the certificate that signs.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// NotAfter is when the first certificate between a leaf and its root expires: no leaf can live longer.
func (a *Authority) NotAfter() time.Time {
	end := a.roots[0].NotAfter
	for _, c := range a.above {
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return end
}

// Equal reports whether both sign with the same certificate, below the same roots.
func (a *Authority) Equal(b *Authority) bool {
	same := func(x, y *x509.Certificate) bool { return x.Equal(y) }
	return b != nil && a.trustDomain == b.trustDomain && a.cert.Equal(b.cert) &&
		slices.EqualFunc(a.above, b.above, same) && slices.EqualFunc(a.roots, b.roots, same)
}

// Sign issues a leaf for id and pub with the given life, which never outlives what is above it. It returns the
// leaf and the intermediates below the root.
func (a *Authority) Sign(id spiffeid.ID, pub crypto.PublicKey, life time.Duration) ([]*x509.Certificate, error) {
	if !id.MemberOf(a.trustDomain) {
		return nil, fmt.Errorf("sign %s: not of trust domain %s", id, a.trustDomain)
	}
	chain, err := a.sign(&x509.Certificate{
		URIs:        []*url.URL{id.URL()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, pub, life)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", id, err)
	}
	return chain, nil
}

// SignServer issues the certificate of a TLS server with these DNS names. It carries no SPIFFE ID, so it is no
// SVID, and an SVID carries no DNS name, so that no workload can pose as a server of the control plane.
func (a *Authority) SignServer(names []string, pub crypto.PublicKey, life time.Duration) ([]*x509.Certificate, error) {
	if len(names) == 0 {
		return nil, errors.New("sign server certificate: no names")
	}
	chain, err := a.sign(&x509.Certificate{
		Subject:     pkix.Name{Organization: []string{a.trustDomain.Name()}},
		DNSNames:    names,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, pub, life)
	if err != nil {
		return nil, fmt.Errorf("sign server certificate of %s: %w", names[0], err)
	}
	return chain, nil
}

// sign completes the template and signs it.
func (a *Authority) sign(template *x509.Certificate, pub crypto.PublicKey, life time.Duration) ([]*x509.Certificate, error) {
	now := time.Now()
	switch end := a.NotAfter(); {
	case life <= 0:
		return nil, fmt.Errorf("a life of %s", life)
	case !end.After(now):
		return nil, fmt.Errorf("the CA's own certificate expired at %s", end.Format(time.RFC3339))
	case now.Add(life).After(end):
		life = end.Sub(now)
	}
	var err error
	if template.SerialNumber, err = newSerial(); err != nil {
		return nil, err
	}
	template.NotBefore, template.NotAfter = now.Add(-clockSkew), now.Add(life)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, pub, a.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return append([]*x509.Certificate{leaf}, a.above...), nil
}

// newSerial returns a positive 127-bit random number (RFC 5280, section 4.1.2.2: at most 20 octets).
func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("certificate serial: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}
