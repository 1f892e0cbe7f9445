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
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// RootName is how the names of the roots begin that are made here; the rest tells one from another.
const RootName = "Culvert root"

const intermediateName = "Culvert intermediate"

// Root is a root certificate with its key.
type Root struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// NewRoot makes a self-signed root.
func NewRoot(td spiffeid.TrustDomain, life time.Duration) (*Root, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("root key: %w", err)
	}
	template, err := authorityTemplate(td.ID().URL(), RootName, &key.PublicKey, time.Now().Add(life))
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	cert, err := certify(template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	return &Root{cert: cert, key: key}, nil
}

// ParseRoot reads a root from PEM. It may have expired: those who keep it must be able to look at it.
func ParseRoot(cert, key []byte) (*Root, error) {
	certs, err := ParseCertificates(cert)
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	// The error never quotes the key.
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("root certificate and its key do not go together: %w", err)
	}
	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("root key: is a %T, which cannot sign", pair.PrivateKey)
	}
	return &Root{cert: certs[0], key: signer}, nil
}

// Certificate returns the root's certificate.
func (r *Root) Certificate() *x509.Certificate { return r.cert }

// PEM returns certificate and key. The caller clears the key when it is written.
func (r *Root) PEM() (cert, key []byte, err error) {
	if key, err = encodeKey(r.key); err != nil {
		return nil, nil, fmt.Errorf("root key: %w", err)
	}
	return EncodeCertificates([]*x509.Certificate{r.cert}), key, nil
}

// Intermediate makes an authority below the root, which never outlives it. The material's only root is this one.
func (r *Root) Intermediate(td spiffeid.TrustDomain, life time.Duration) (Material, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Material{}, fmt.Errorf("intermediate's key: %w", err)
	}
	end := time.Now().Add(life)
	if end.After(r.cert.NotAfter) {
		end = r.cert.NotAfter
	}
	template, err := authorityTemplate(td.ID().URL(), intermediateName, &key.PublicKey, end)
	if err != nil {
		return Material{}, fmt.Errorf("intermediate's certificate: %w", err)
	}
	template.MaxPathLenZero = true // it certifies leaves, and no further authority
	cert, err := certify(template, r.cert, &key.PublicKey, r.key)
	if err != nil {
		return Material{}, fmt.Errorf("intermediate's certificate: %w", err)
	}
	text, err := encodeKey(key)
	if err != nil {
		return Material{}, fmt.Errorf("intermediate's key: %w", err)
	}
	chain := EncodeCertificates([]*x509.Certificate{cert})
	return Material{Cert: chain, Chain: chain, Key: text, Roots: EncodeCertificates([]*x509.Certificate{r.cert})}, nil
}

// Made is when a certificate of this package was made: its life begins earlier, for peers whose clock is behind.
func Made(c *x509.Certificate) time.Time { return c.NotBefore.Add(clockSkew) }

// Fingerprint is the SHA-256 of a certificate, as people compare it.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// authorityTemplate is what roots and intermediates have in common. Each has a name of its own, so that verifiers that
// look for an issuer by name find one, and people see which.
func authorityTemplate(id *url.URL, name string, pub *ecdsa.PublicKey, end time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	raw, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	keyID := sha256.Sum256(raw)
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{id.Host}, CommonName: name + " " + hex.EncodeToString(keyID[:4])},
		URIs:                  []*url.URL{id},
		NotBefore:             time.Now().Add(-clockSkew),
		NotAfter:              end,
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		SubjectKeyId:          keyID[:20],
	}, nil
}

func certify(template, parent *x509.Certificate, pub *ecdsa.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	defer clear(pkcs8)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), nil
}
