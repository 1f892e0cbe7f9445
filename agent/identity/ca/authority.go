// Package ca issues X.509 SVIDs from a root that lives in this process's memory.
package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	// clockSkew is how far in the past a certificate's life begins, for peers whose clock is behind.
	clockSkew = time.Minute
	rootLife  = 10 * 365 * 24 * time.Hour
)

// Authority is a certificate authority of one trust domain. Safe for concurrent use.
type Authority struct {
	trustDomain spiffeid.TrustDomain
	root        *x509.Certificate
	key         crypto.Signer
}

// New makes an authority with a new self-signed root, which is gone with the process.
func New(td spiffeid.TrustDomain) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("CA key: %w", err)
	}
	template, err := rootTemplate(td, &key.PublicKey)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("CA root certificate: %w", err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("CA root certificate: %w", err)
	}
	return &Authority{trustDomain: td, root: root, key: key}, nil
}

func rootTemplate(td spiffeid.TrustDomain, pub *ecdsa.PublicKey) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	raw, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("CA key: %w", err)
	}
	keyID := sha256.Sum256(raw)
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{td.Name()}, CommonName: "Culvert root"},
		URIs:                  []*url.URL{td.ID().URL()},
		NotBefore:             time.Now().Add(-clockSkew),
		NotAfter:              time.Now().Add(rootLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		SubjectKeyId:          keyID[:20],
	}, nil
}

// FromPEM makes an authority from a root certificate and its key, both PEM.
func FromPEM(td spiffeid.TrustDomain, cert, key []byte) (*Authority, error) {
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("CA certificate and key: %w", err)
	}
	root := pair.Leaf
	if root == nil {
		if root, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return nil, fmt.Errorf("CA certificate: %w", err)
		}
	}
	signer, ok := pair.PrivateKey.(crypto.Signer)
	switch {
	case !ok:
		return nil, errors.New("CA key: cannot sign")
	case !root.IsCA || !root.BasicConstraintsValid:
		return nil, fmt.Errorf("CA certificate %q: is not a CA (basicConstraints CA:TRUE is missing)", root.Subject)
	case root.KeyUsage != 0 && root.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, fmt.Errorf("CA certificate %q: its key usage does not allow signing certificates", root.Subject)
	case time.Now().After(root.NotAfter):
		return nil, fmt.Errorf("CA certificate %q: expired at %s", root.Subject, root.NotAfter.Format(time.RFC3339))
	}
	return &Authority{trustDomain: td, root: root, key: signer}, nil
}

// Bundle returns the roots that peers of this trust domain verify against.
func (a *Authority) Bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(a.trustDomain, []*x509.Certificate{a.root})
}

// Sign issues a leaf for id and pub with the given life; it never outlives the root.
func (a *Authority) Sign(id spiffeid.ID, pub crypto.PublicKey, life time.Duration) ([]*x509.Certificate, error) {
	if !id.MemberOf(a.trustDomain) {
		return nil, fmt.Errorf("sign %s: not of trust domain %s", id, a.trustDomain)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(life),
		URIs:                  []*url.URL{id.URL()},
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if template.NotAfter.After(a.root.NotAfter) {
		template.NotAfter = a.root.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.root, pub, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", id, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", id, err)
	}
	return []*x509.Certificate{leaf}, nil
}

// newSerial returns a positive 127-bit random number (RFC 5280, section 4.1.2.2: at most 20 octets).
func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("certificate serial: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}
