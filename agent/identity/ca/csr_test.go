package ca_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"net"
	"net/url"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/catest"
)

func identity() spiffeid.ID { return spiffeid.RequireFromPath(domain(), "/ns/shop/sa/cart") }

// request makes a CSR as agents do, altered.
func request(t testing.TB, key crypto.Signer, alter func(*x509.CertificateRequest)) []byte {
	t.Helper()
	r := &x509.CertificateRequest{URIs: []*url.URL{identity().URL()}}
	if alter != nil {
		alter(r)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, r, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func ecKey(t testing.TB, curve elliptic.Curve) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func rsaKey(t testing.TB, bits int) crypto.Signer {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0") // to make weak keys
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func extension(t testing.TB, id asn1.ObjectIdentifier, value any) func(*x509.CertificateRequest) {
	t.Helper()
	der, err := asn1.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return func(r *x509.CertificateRequest) {
		r.ExtraExtensions = append(r.ExtraExtensions, pkix.Extension{Id: id, Value: der})
	}
}

func TestCheckCSR(t *testing.T) {
	p256 := ecKey(t, elliptic.P256())
	good := request(t, p256, nil)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	san := asn1.ObjectIdentifier{2, 5, 29, 17}
	name := func(tag int, value string) asn1.RawValue {
		return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: []byte(value)}
	}
	uri := identity().String()
	tests := []struct {
		name string
		csr  []byte
		want string // in the error; empty: accepted
	}{
		{"one URI", good, ""},
		{"critical URI as ztunnel sends it", request(t, p256, func(r *x509.CertificateRequest) {
			extension(t, san, []asn1.RawValue{name(6, uri)})(r)
			r.ExtraExtensions[0].Critical = true
		}), ""},
		{"no name", request(t, p256, func(r *x509.CertificateRequest) { r.URIs = nil }), ""},
		{"empty organization as Istio's sidecar agent sends it", request(t, p256, func(r *x509.CertificateRequest) {
			r.Subject = pkix.Name{Organization: []string{""}}
		}), ""},
		{"P-384", request(t, ecKey(t, elliptic.P384()), nil), ""},
		{"RSA 2048", request(t, rsaKey(t, 2048), nil), ""},
		{"not a CA, said so", request(t, p256, extension(t, asn1.ObjectIdentifier{2, 5, 29, 19}, struct{}{})), ""},

		{"empty", nil, "is not PEM"},
		{"garbage", []byte("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"), "CSR:"},
		{"a certificate", catest.CertPEM(catest.Root(t, "root")), `is a "CERTIFICATE"`},
		{"two", append(good[:len(good):len(good)], good...), "followed by something else"},
		{"too large", append(good[:len(good):len(good)], make([]byte, 20<<10)...), "want at most"},
		{"signature of another key", forged(t, good), "signature"},
		{"P-224", request(t, ecKey(t, elliptic.P224()), nil), "P-224"},
		{"P-521", request(t, ecKey(t, elliptic.P521()), nil), "P-521"},
		{"RSA 1024", request(t, rsaKey(t, 1024), nil), "RSA key of 1024 bits"},
		{"Ed25519", request(t, ed, nil), "ed25519"},
		{"CA bit", request(t, p256, extension(t, asn1.ObjectIdentifier{2, 5, 29, 19}, struct{ IsCA bool }{true})), "asks to be a CA"},
		{"keyCertSign", request(t, p256, extension(t, asn1.ObjectIdentifier{2, 5, 29, 15}, asn1.BitString{Bytes: []byte{4}, BitLength: 6})), "key usage of a CA"},
		{"another identity", request(t, p256, func(r *x509.CertificateRequest) {
			r.URIs[0] = spiffeid.RequireFromPath(domain(), "/ns/shop/sa/till").URL()
		}), "sa/till"},
		{"a second identity", request(t, p256, func(r *x509.CertificateRequest) { r.URIs = append(r.URIs, r.URIs[0]) }), "2 names"},
		{"a DNS name beside", request(t, p256, func(r *x509.CertificateRequest) { r.DNSNames = []string{"istiod"} }), "2 names"},
		{"a DNS name only", request(t, p256, func(r *x509.CertificateRequest) { r.URIs, r.DNSNames = nil, []string{"istiod"} }), "kind 2"},
		{"an address", request(t, p256, func(r *x509.CertificateRequest) { r.IPAddresses = []net.IP{{1, 2, 3, 4}} }), "2 names"},
		{"a kind that crypto/x509 does not read", request(t, p256, func(r *x509.CertificateRequest) {
			r.URIs = nil
			extension(t, san, []asn1.RawValue{name(6, uri), name(8, "\x2a\x03")})(r)
		}), "2 names"},
		{"a common name", request(t, p256, func(r *x509.CertificateRequest) { r.Subject.CommonName = "istiod" }), "asks for a subject"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			key, err := ca.CheckCSR(test.csr, identity())
			switch {
			case test.want == "" && (err != nil || key == nil):
				t.Fatalf("refused: %v", err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Fatalf("error %v, want %q in it", err, test.want)
			}
		})
	}
}

// forged alters the last byte of the signature.
func forged(t testing.TB, text []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(text)
	block.Bytes[len(block.Bytes)-1] ^= 1
	return pem.EncodeToMemory(block)
}

// FuzzCSR: what passes has a key that may be certified and, read by crypto/x509, no name but the identity's.
func FuzzCSR(f *testing.F) {
	key := ecKey(f, elliptic.P256())
	for _, alter := range []func(*x509.CertificateRequest){
		nil,
		func(r *x509.CertificateRequest) { r.URIs = nil },
		func(r *x509.CertificateRequest) { r.DNSNames = []string{"x"} },
		func(r *x509.CertificateRequest) { r.Subject.CommonName = "x" },
		extension(f, asn1.ObjectIdentifier{2, 5, 29, 19}, struct{ IsCA bool }{true}),
	} {
		block, _ := pem.Decode(request(f, key, alter))
		f.Add(block.Bytes)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
		if _, err := ca.CheckCSR(text, identity()); err != nil {
			return
		}
		r, err := x509.ParseCertificateRequest(der)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.DNSNames)+len(r.EmailAddresses)+len(r.IPAddresses) > 0 || len(r.URIs) > 1 || r.Subject.CommonName != "" {
			t.Fatalf("names %v %v %v %v %v", r.DNSNames, r.EmailAddresses, r.IPAddresses, r.URIs, r.Subject)
		}
		if len(r.URIs) == 1 && r.URIs[0].String() != identity().String() {
			t.Fatalf("URI %s", r.URIs[0])
		}
	})
}
