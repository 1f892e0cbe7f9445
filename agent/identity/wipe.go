package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
)

// Wipe overwrites a private key that nobody uses any more. What crypto/ecdsa and crypto/x509 copied of it for
// themselves is out of reach, and stays until the garbage collector gives the memory away.
func Wipe(key crypto.Signer) {
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		//lint:ignore SA1019 nothing else leads to the words that hold the key
		clear(k.D.Bits())
	case *rsa.PrivateKey:
		clear(k.D.Bits())
		for _, p := range k.Primes {
			clear(p.Bits())
		}
	}
}
