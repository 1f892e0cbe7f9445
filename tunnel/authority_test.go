package tunnel

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/tunnel/control"
)

// authority signs for a trust domain.
type authority struct {
	domain        string
	root, issuer  *x509.Certificate // the same, without an intermediate
	intermediates [][]byte          // what leads from issuer to root
	key, rootKey  *ecdsa.PrivateKey // of issuer and root
}

func newAuthority(t testing.TB, domain string) *authority {
	t.Helper()
	return newAuthorityUntil(t, domain, nil, time.Now().Add(time.Hour))
}

// newAuthorityUntil makes a root, or an intermediate below an authority.
func newAuthorityUntil(t testing.TB, domain string, above *authority, expires time.Time) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	serial := big.NewInt(time.Now().UnixNano())
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: domain, SerialNumber: serial.String()}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: expires, KeyUsage: x509.KeyUsageCertSign,
	}
	parent, signer := template, key
	if above != nil {
		parent, signer = above.issuer, above.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	must(t, err)
	made, err := x509.ParseCertificate(der)
	must(t, err)
	if above == nil {
		return &authority{domain: domain, root: made, issuer: made, key: key, rootKey: key}
	}
	return &authority{domain: domain, root: above.root, issuer: made, intermediates: append([][]byte{der}, above.intermediates...),
		key: key, rootKey: above.rootKey}
}

// intermediate is an authority below a.
func (a *authority) intermediate(t testing.TB) *authority {
	return newAuthorityUntil(t, a.domain, a, time.Now().Add(time.Hour))
}

func (a *authority) id(account string) string {
	return "spiffe://" + a.domain + "/ns/default/sa/" + account
}

func (a *authority) svid(t testing.TB, id string, expires time.Time, federates ...string) *control.FromAgent {
	t.Helper()
	return a.svidFrom(t, id, time.Now().Add(-time.Hour), expires, federates...)
}

func (a *authority) svidFrom(t testing.TB, id string, begins, expires time.Time, federates ...string) *control.FromAgent {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	uri, err := url.Parse(id)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), URIs: []*url.URL{uri},
		NotBefore: begins, NotAfter: expires, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	leaf, err := x509.CreateCertificate(rand.Reader, template, a.issuer, key.Public(), a.key)
	must(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	return &control.FromAgent{Message: &control.FromAgent_Svid{
		Svid: &control.SVID{Identity: id, Chain: append([][]byte{leaf}, a.intermediates...), Key: pkcs8, FederatesWith: federates}}}
}

func (a *authority) bundle() *control.FromAgent { return bundleOf(a.domain, a) }

// bundleOf holds the roots of several authorities.
func bundleOf(domain string, authorities ...*authority) *control.FromAgent {
	bundle := &control.Bundle{TrustDomain: domain}
	for _, a := range authorities {
		bundle.Roots = append(bundle.Roots, a.root.Raw)
	}
	return &control.FromAgent{Message: &control.FromAgent_Bundle{Bundle: bundle}}
}
