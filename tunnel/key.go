package tunnel

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"io"
	"math/big"
	"sync"
)

var errKeyWiped = errors.New("private key has been wiped")

// privateKey is the key of an SVID. It is overwritten once it has been dropped and the last handshake that may still
// sign with it is over; Sign fails from then on.
//
// What cannot be reached are the copies that parsing the PKCS #8 form and each signature leave on the heap: they are
// garbage at once, and overwritten when the runtime gives their memory to something else.
type privateKey struct {
	public crypto.PublicKey

	mu      sync.RWMutex // held for reading while signing
	signer  crypto.Signer
	users   int
	dropped bool
}

func newPrivateKey(signer crypto.Signer) *privateKey {
	return &privateKey{public: signer.Public(), signer: signer}
}

// Public implements crypto.Signer.
func (k *privateKey) Public() crypto.PublicKey { return k.public }

// Sign implements crypto.Signer.
func (k *privateKey) Sign(random io.Reader, digest []byte, options crypto.SignerOpts) ([]byte, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.signer == nil {
		return nil, errKeyWiped
	}
	return k.signer.Sign(random, digest, options)
}

// acquire keeps the key from being wiped until release.
func (k *privateKey) acquire() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.users++
}

func (k *privateKey) release() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.users--
	k.wipeUnused()
}

// drop says that nobody will acquire the key any more.
func (k *privateKey) drop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.dropped = true
	k.wipeUnused()
}

func (k *privateKey) wipeUnused() {
	if k.dropped && k.users == 0 && k.signer != nil {
		wipe(k.signer)
		k.signer = nil
	}
}

func wipe(signer crypto.Signer) {
	switch key := signer.(type) {
	case *ecdsa.PrivateKey:
		// crypto/ecdsa keeps a second form of each key that has signed. What Bytes returns today is that form's
		// own memory; if it were a copy, clearing it would do no harm.
		if scalar, err := key.Bytes(); err == nil {
			clear(scalar)
		}
		//lint:ignore SA1019 there is no other way to reach the number
		wipeInt(key.D)
	case ed25519.PrivateKey:
		clear(key)
	case *rsa.PrivateKey:
		for _, n := range append(key.Primes, key.D, key.Precomputed.Dp, key.Precomputed.Dq, key.Precomputed.Qinv) {
			wipeInt(n)
		}
	}
}

// wipeInt overwrites a number's words, also those beyond its present length.
func wipeInt(n *big.Int) {
	if n == nil {
		return
	}
	words := n.Bits()
	clear(words[:cap(words)])
	n.SetInt64(0)
}
