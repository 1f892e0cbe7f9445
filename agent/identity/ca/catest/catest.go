// Package catest makes certificates for tests: good ones, and ones with a single fault.
package catest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

// CA is a certificate that can sign others, and its key.
type CA struct {
	Cert *x509.Certificate
	Key  *ecdsa.PrivateKey
}

// Root makes a self-signed CA; alter, if any, is applied to its certificate before it is signed.
func Root(t testing.TB, name string, alter ...func(*x509.Certificate)) *CA {
	t.Helper()
	c := &CA{Key: Key(t)}
	template := template(name, alter)
	c.Cert = sign(t, template, template, &c.Key.PublicKey, c.Key)
	return c
}

// Intermediate makes a CA below c.
func (c *CA) Intermediate(t testing.TB, name string, alter ...func(*x509.Certificate)) *CA {
	t.Helper()
	i := &CA{Key: Key(t)}
	i.Cert = sign(t, template(name, alter), c.Cert, &i.Key.PublicKey, c.Key)
	return i
}

// Leaf signs a certificate for key, which is one day valid unless alter has it otherwise.
func (c *CA) Leaf(t testing.TB, key any, alter ...func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	l := template("", alter)
	l.IsCA, l.Subject, l.KeyUsage = false, pkix.Name{}, x509.KeyUsageDigitalSignature
	if l.ExtKeyUsage == nil {
		l.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	return sign(t, l, c.Cert, key, c.Key)
}

// CertPEM returns certificates one after the other.
func CertPEM(cas ...*CA) []byte {
	var text []byte
	for _, c := range cas {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Cert.Raw})...)
	}
	return text
}

// KeyPEM returns the key.
func (c *CA) KeyPEM(t testing.TB) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.Key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// Key makes a P-256 key.
func Key(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func template(name string, alter []func(*x509.Certificate)) *x509.Certificate {
	c := &x509.Certificate{
		Subject:   pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	for _, f := range alter {
		f(c)
	}
	return c
}

func sign(t testing.TB, template, parent *x509.Certificate, pub, key any) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
