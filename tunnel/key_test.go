package tunnel

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// secrets returns the memory that holds what must not stay.
func secrets(t *testing.T, signer crypto.Signer) func() bool {
	t.Helper()
	switch key := signer.(type) {
	case *ecdsa.PrivateKey:
		raw, err := key.Bytes() // of the form that crypto/ecdsa keeps once the key has signed
		must(t, err)
		//lint:ignore SA1019 the test looks at the memory
		words := key.D.Bits()
		return func() bool { return allZero(words) && allZero(raw) }
	case ed25519.PrivateKey:
		return func() bool { return allZero(key) }
	case *rsa.PrivateKey:
		d, p := key.D.Bits(), key.Primes[0].Bits()
		return func() bool { return allZero(d) && allZero(p) }
	}
	t.Fatalf("%T", signer)
	return nil
}

func allZero[T byte | ~uint](s []T) bool {
	return len(s) > 0 && !slices.ContainsFunc(s, func(v T) bool { return v != 0 })
}

func sign(k *privateKey) error {
	options := crypto.SignerOpts(crypto.SHA256)
	if _, ok := k.Public().(ed25519.PublicKey); ok {
		options = crypto.Hash(0)
	}
	_, err := k.Sign(rand.Reader, make([]byte, 32), options)
	return err
}

// TestKeyIsWipedAfterItsLastUser: as long as a handshake holds it, a dropped key signs.
func TestKeyIsWipedAfterItsLastUser(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	long, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	for name, signer := range map[string]crypto.Signer{"P-256": p256, "Ed25519": edwards, "RSA": long} {
		t.Run(name, func(t *testing.T) {
			k := newPrivateKey(signer)
			must(t, sign(k))
			wiped := secrets(t, signer)
			k.acquire()
			k.acquire()
			k.drop()
			k.release()
			must(t, sign(k))
			if wiped() {
				t.Fatal("wiped while in use")
			}
			k.release()
			if !wiped() {
				t.Error("not wiped")
			}
			if err := sign(k); !errors.Is(err, errKeyWiped) {
				t.Errorf("got %v, want to be refused", err)
			}
		})
	}
}

// TestSVIDKeysAreWiped: of a message always, of an SVID when it is replaced, taken back or not taken at all.
func TestSVIDKeysAreWiped(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	id := spiffeid.RequireFromString(ca.id("a"))
	s := newIdentities()
	give := func(expires time.Time) error {
		t.Helper()
		m := ca.svid(t, id.String(), expires).GetSvid()
		key := m.GetKey()
		err := s.setSVID(m)
		if !allZero(key) {
			t.Error("the message still holds the key")
		}
		return err
	}
	must(t, give(later()))
	first, err := s.acquire(id)
	must(t, err)
	must(t, give(later()))
	must(t, sign(first.key)) // its handshake goes on
	first.key.release()
	if err := sign(first.key); !errors.Is(err, errKeyWiped) {
		t.Errorf("replaced: %v", err)
	}
	second, err := s.usable(id)
	must(t, err)
	if err := give(time.Now().Add(-time.Minute)); !errors.Is(err, errExpired) {
		t.Errorf("got %v, want an expired one to be refused", err)
	}
	if now, err := s.usable(id); err != nil || now != second {
		t.Errorf("%v: an expired SVID took the place of a good one", err)
	}
	m := ca.svid(t, id.String(), later()).GetSvid()
	m.Chain[0] = m.Chain[0][:40]
	if err := s.setSVID(m); err == nil || !allZero(m.GetKey()) {
		t.Errorf("garbage: %v, key %x", err, m.GetKey())
	}
	other := ca.svid(t, ca.id("b"), later()).GetSvid()
	other.Identity = id.String()
	if err := s.setSVID(other); err == nil {
		t.Error("an SVID of another identity was taken")
	}
	m = ca.svid(t, id.String(), later()).GetSvid()
	m.Chain = nil
	must(t, s.setSVID(m))
	if err := sign(second.key); !errors.Is(err, errKeyWiped) {
		t.Errorf("taken back: %v", err)
	}
	if _, err := s.usable(id); !errors.Is(err, errNoCertificate) {
		t.Errorf("got %v", err)
	}
	if len(s.held()) != 0 {
		t.Error("something is still held")
	}
}
