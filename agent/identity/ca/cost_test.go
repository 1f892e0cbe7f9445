package ca_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/catest"
)

// modulus is a number of that many bits, as anybody can put into a certificate.
func modulus(t *testing.T, bits int) *big.Int {
	t.Helper()
	n := make([]byte, bits/8)
	if _, err := rand.Read(n); err != nil {
		t.Fatal(err)
	}
	n[0] |= 0x80
	n[len(n)-1] |= 1
	return new(big.Int).SetBytes(n)
}

func TestCertificatesThatCostTooMuchToVerifyAreRefused(t *testing.T) {
	parent := catest.Root(t, "root")
	holding := func(bits, exponent int, selfIssued bool) []byte {
		key := &rsa.PublicKey{N: modulus(t, bits), E: exponent}
		c := parent.Leaf(t, key, func(c *x509.Certificate) {})
		if selfIssued {
			template := *parent.Cert
			template.PublicKey, template.Signature = nil, nil
			der, err := x509.CreateCertificate(rand.Reader, &template, parent.Cert, key, parent.Key)
			if err != nil {
				t.Fatal(err)
			}
			if c, err = x509.ParseCertificate(der); err != nil {
				t.Fatal(err)
			}
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	good := catest.CertPEM(parent)
	tests := []struct {
		name string
		text []byte
		want string
	}{
		{"RSA of 4096 bits", holding(4096, 65537, false), ""},
		{"RSA of 4104 bits", holding(4104, 65537, false), "RSA key of 4104 bits, want at most 4096"},
		{"root with 8192 bits", holding(8192, 65537, true), ""},
		{"root with 8200 bits", holding(8200, 65537, true), "RSA key of 8200 bits, want at most 8192"},
		{"huge", holding(1<<18, 1<<31-1, false), "want at most 4096"},
		{"large exponent", holding(2048, 1<<31-1, false), "exponent 2147483647, want 65537"},
		{"small exponent", holding(2048, 3, false), "exponent 3, want 65537"},
		{"after a good one", append(bytes.Clone(good), holding(8192, 65537, false)...), "certificate 2: RSA key of 8192 bits"},
		{"256 certificates", bytes.Repeat(good, 256), ""},
		{"257 certificates", bytes.Repeat(good, 257), "more than 256 certificates"},
		{"more than a Secret can hold", bytes.Repeat([]byte("x"), 1<<20+1), "1048577 bytes"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := ca.ParseCertificates(test.text)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Fatalf("error %v, want %q", err, test.want)
			}
		})
	}
}
