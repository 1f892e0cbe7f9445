package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Material is what an authority is kept as, all PEM: the files that Istio's `cacerts` Secret has.
type Material struct {
	Cert  []byte // ca-cert.pem: the certificate that signs
	Key   []byte // ca-key.pem
	Chain []byte // cert-chain.pem: Cert and the intermediates above it; may be empty if Cert is a root
	Roots []byte // root-cert.pem: one or more
}

// The names of Material's parts, in messages as in the Secret.
const (
	CertName  = "ca-cert.pem"
	KeyName   = "ca-key.pem"
	ChainName = "cert-chain.pem"
	RootsName = "root-cert.pem"
)

const (
	minRSABits = 2048
	// What a certificate of somebody else can make us do when it is verified: a root is made once and may be stronger.
	maxRootRSABits = 8192
	rsaExponent    = 65537
	// maxCertificateBytes is what a Secret or ConfigMap can hold.
	maxCertificateBytes = 1 << 20
	maxCertificates     = 256
	// selfTestLife is that of the certificate by which Load proves that what is signed will verify.
	selfTestLife = time.Minute
)

// Generate makes a new self-signed root, which signs by itself.
func Generate(td spiffeid.TrustDomain) (Material, error) {
	root, err := NewRoot(td, rootLife)
	if err != nil {
		return Material{}, err
	}
	cert, key, err := root.PEM()
	if err != nil {
		return Material{}, err
	}
	return Material{Cert: cert, Chain: cert, Roots: cert, Key: key}, nil
}

// Load makes an authority and proves it: what it signs leads to one of the roots.
func Load(td spiffeid.TrustDomain, m Material) (*Authority, error) {
	certs, key, err := signing(m)
	if err != nil {
		return nil, err
	}
	roots, err := liveRoots(m.Roots)
	if err != nil {
		return nil, err
	}
	more, err := parseCAs(ChainName, m.Chain)
	if err != nil && len(bytes.TrimSpace(m.Chain)) > 0 {
		return nil, err
	}
	cert := certs[0]
	path, err := pathToRoot(cert, append(more, certs[1:]...), roots)
	if err != nil {
		return nil, err
	}
	a := &Authority{trustDomain: td, cert: cert, key: key, roots: ownFirst(roots, path[len(path)-1]), above: path[:len(path)-1]}
	return a, a.prove()
}

// liveRoots reads the bundle. What has expired in it, or is not valid yet, verifies nothing and harms nothing, as long as
// there is another.
func liveRoots(text []byte) ([]*x509.Certificate, error) {
	all, err := ParseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", RootsName, err)
	}
	live := slices.DeleteFunc(slices.Clone(all), func(c *x509.Certificate) bool {
		return time.Now().After(c.NotAfter) || time.Now().Before(c.NotBefore)
	})
	if len(live) == 0 {
		live = all
	}
	return live, checkCAs(RootsName, live)
}

// signing reads the certificate that signs, what may follow it, and its key.
func signing(m Material) ([]*x509.Certificate, crypto.Signer, error) {
	certs, err := parseCAs(CertName, m.Cert)
	if err != nil {
		return nil, nil, err
	}
	if len(bytes.TrimSpace(m.Key)) == 0 {
		return nil, nil, fmt.Errorf("%s: is missing or empty", KeyName)
	}
	// The error never quotes the key.
	pair, err := tls.X509KeyPair(m.Cert, m.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("%s and %s do not go together: %w", CertName, KeyName, err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, nil, fmt.Errorf("%s: is of a kind that cannot sign", KeyName)
	}
	if k, ok := key.(*rsa.PrivateKey); ok && k.N.BitLen() < minRSABits {
		return nil, nil, fmt.Errorf("%s: RSA key of %d bits, want at least %d", KeyName, k.N.BitLen(), minRSABits)
	}
	return certs, key, nil
}

// pathToRoot returns the certificates from cert to one of the roots, both included.
func pathToRoot(cert *x509.Certificate, more, roots []*x509.Certificate) ([]*x509.Certificate, error) {
	paths, err := cert.Verify(x509.VerifyOptions{
		Roots: pool(roots), Intermediates: pool(more), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, fmt.Errorf("%s %q does not lead to a root in %s (by way of %s): %w",
			CertName, cert.Subject, RootsName, ChainName, err)
	}
	return slices.MinFunc(paths, func(a, b []*x509.Certificate) int { return len(a) - len(b) }), nil
}

// prove signs a certificate and verifies it as a peer would: length of path, name constraints and key usages that
// forbid it show here, and not at the first handshake.
func (a *Authority) prove() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("CA self-test: key: %w", err)
	}
	id, err := spiffeid.FromSegments(a.trustDomain, "ns", "self-test", "sa", "self-test")
	if err != nil {
		return fmt.Errorf("CA self-test: %w", err)
	}
	chain, err := a.Sign(id, &key.PublicKey, selfTestLife)
	if err != nil {
		return fmt.Errorf("CA self-test: %w", err)
	}
	if _, _, err := x509svid.Verify(chain, a.Bundle()); err != nil {
		return fmt.Errorf("certificates that %s %q signs for trust domain %s do not verify: %w",
			CertName, a.cert.Subject, a.trustDomain, err)
	}
	return nil
}

// ownFirst moves own to the front.
func ownFirst(roots []*x509.Certificate, own *x509.Certificate) []*x509.Certificate {
	sorted := []*x509.Certificate{own}
	for _, r := range roots {
		if !r.Equal(own) {
			sorted = append(sorted, r)
		}
	}
	return sorted
}

func pool(certs []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

// parseCAs reads certificates that must all be able to sign others now.
func parseCAs(name string, text []byte) ([]*x509.Certificate, error) {
	certs, err := ParseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return certs, checkCAs(name, certs)
}

func checkCAs(name string, certs []*x509.Certificate) error {
	for _, c := range certs {
		now := time.Now()
		switch {
		case !c.IsCA || !c.BasicConstraintsValid:
			return fmt.Errorf("%s: %q is not a CA (basicConstraints CA:TRUE is missing)", name, c.Subject)
		case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
			return fmt.Errorf("%s: the key usage of %q does not allow signing certificates", name, c.Subject)
		case now.After(c.NotAfter):
			return fmt.Errorf("%s: %q expired at %s", name, c.Subject, c.NotAfter.Format(time.RFC3339))
		case now.Before(c.NotBefore):
			return fmt.Errorf("%s: %q is not valid before %s", name, c.Subject, c.NotBefore.Format(time.RFC3339))
		}
	}
	return nil
}

// ParseCertificates reads one or more certificates in PEM, and nothing else. Text between them is left alone, as
// openssl writes some. It refuses what would be too much work to verify: text of more than a MiB, RSA keys of more than
// 4096 bits (8192 in a certificate that names itself as issuer) or with another exponent than 65537.
func ParseCertificates(text []byte) ([]*x509.Certificate, error) {
	if len(text) > maxCertificateBytes {
		return nil, fmt.Errorf("%d bytes, want at most %d", len(text), maxCertificateBytes)
	}
	var certs []*x509.Certificate
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("holds a %q where only certificates belong", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		if err := checkCost(c); err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		if len(certs) == maxCertificates {
			return nil, fmt.Errorf("more than %d certificates", maxCertificates)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("is missing, or holds no PEM certificate")
	}
	return certs, nil
}

// checkCost bounds the work of verifying a signature by the certificate's key. An RSA key in a certificate can have any
// size and exponent, and nobody needs to have its other half.
func checkCost(c *x509.Certificate) error {
	key, ok := c.PublicKey.(*rsa.PublicKey)
	if !ok {
		return nil
	}
	if bytes.Equal(c.RawIssuer, c.RawSubject) {
		return checkRSA(key, maxRootRSABits)
	}
	return checkRSA(key, maxRSABits)
}

func checkRSA(k *rsa.PublicKey, maxBits int) error {
	switch {
	case k.N.BitLen() > maxBits:
		return fmt.Errorf("RSA key of %d bits, want at most %d", k.N.BitLen(), maxBits)
	case k.E != rsaExponent:
		return fmt.Errorf("RSA key with exponent %d, want %d", k.E, rsaExponent)
	}
	return nil
}

// EncodeCertificates is the inverse of ParseCertificates.
func EncodeCertificates(certs []*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.Bytes()
}
