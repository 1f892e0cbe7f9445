package tunnel

import (
	"crypto/rsa"
	"crypto/x509"
	"math/big"
	"testing"
)

func TestPeersChainThatIsCostlyToVerify(t *testing.T) {
	key := func(bits uint, exponent int) *x509.Certificate {
		n := new(big.Int).SetBit(big.NewInt(1), int(bits)-1, 1)
		return &x509.Certificate{SerialNumber: big.NewInt(1), PublicKey: &rsa.PublicKey{N: n, E: exponent}}
	}
	for _, test := range []struct {
		name  string
		chain []*x509.Certificate
		good  bool
	}{
		{"usual", []*x509.Certificate{{}, key(4096, 65537)}, true},
		{"large key", []*x509.Certificate{{}, key(8192, 65537)}, false},
		{"large exponent", []*x509.Certificate{{}, key(2048, 1<<31-1)}, false},
		{"long", make([]*x509.Certificate, maxPeerChain+1), false},
	} {
		if err := bounded(test.chain); (err == nil) != test.good {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}
