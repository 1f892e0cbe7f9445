package svidcheck_test

import (
	"crypto/rsa"
	"crypto/x509"
	"math/big"
	"testing"

	"github.com/culvert-mesh/culvert/agent/identity/svidcheck"
)

// Verifying a signature by one of these keys would take seconds.
func TestCostlyKeysAreRefused(t *testing.T) {
	modulus := func(bits uint) *big.Int { return new(big.Int).SetBit(big.NewInt(1), int(bits)-1, 1) }
	for _, test := range []struct {
		name string
		key  *rsa.PublicKey
		good bool
	}{
		{"usual", &rsa.PublicKey{N: modulus(2048), E: 65537}, true},
		{"largest", &rsa.PublicKey{N: modulus(4096), E: 65537}, true},
		{"too large", &rsa.PublicKey{N: modulus(4097), E: 65537}, false},
		{"huge", &rsa.PublicKey{N: modulus(655360), E: 65537}, false},
		{"large exponent", &rsa.PublicKey{N: modulus(2048), E: 1<<31 - 1}, false},
	} {
		chain := []*x509.Certificate{{}, {PublicKey: test.key}}
		if err := svidcheck.Bounded(chain); (err == nil) != test.good {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	if err := svidcheck.Bounded(make([]*x509.Certificate, svidcheck.MaxChain+1)); err == nil {
		t.Error("a chain without end is looked at")
	}
}
