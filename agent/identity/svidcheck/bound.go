package svidcheck

import (
	"crypto/rsa"
	"crypto/x509"
	"fmt"
)

const (
	// MaxChain and MaxChainBytes are far above what any CA gives.
	MaxChain      = 10
	MaxChainBytes = 16 << 10
	// maxRSABits: what verifying a signature takes grows with the square, and Go sets no bound outside of TLS.
	maxRSABits     = 4096
	usualRSAPublic = 65537
)

// Parse reads a chain (DER, leaf first) from somebody who is not trusted, and refuses one that is costly to look at.
func Parse(chain [][]byte) ([]*x509.Certificate, error) {
	size := 0
	for _, der := range chain {
		size += len(der)
	}
	if len(chain) > MaxChain || size > MaxChainBytes {
		return nil, fmt.Errorf("chain of %d certificates and %d bytes, at most %d and %d", len(chain), size, MaxChain, MaxChainBytes)
	}
	certs := make([]*x509.Certificate, 0, len(chain))
	for _, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
		certs = append(certs, c)
	}
	return certs, Bounded(certs)
}

// Bounded refuses a chain that is costly to verify: whoever makes one up chooses the keys of its issuers.
func Bounded(chain []*x509.Certificate) error {
	if len(chain) > MaxChain {
		return fmt.Errorf("chain of %d certificates, at most %d", len(chain), MaxChain)
	}
	for _, c := range chain {
		if k, ok := c.PublicKey.(*rsa.PublicKey); ok && (k.N.BitLen() > maxRSABits || k.E != usualRSAPublic) {
			return fmt.Errorf("certificate of %q: RSA key of %d bits with exponent %d, want at most %d and %d",
				c.Subject, k.N.BitLen(), k.E, maxRSABits, usualRSAPublic)
		}
	}
	return nil
}
