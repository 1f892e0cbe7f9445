// Package svidcheck looks at an SVID from an issuer before it is used: as a peer would, and at whether it is what was
// asked for.
package svidcheck

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const (
	// maxLife bounds what an issuer may give: an SVID cannot be taken back.
	maxLife = 366 * 24 * time.Hour
	minLeft = time.Second
	// maxAhead is how far the issuer's clock may be ahead of ours. What is valid only from then on is good enough to
	// be shown to others.
	maxAhead = 5 * time.Minute
)

// Check returns why svid must not be used for want, nil if it may. Roots that came along in its chain count for nothing:
// only those of bundle do.
func Check(svid *x509svid.SVID, want spiffeid.ID, bundle *x509bundle.Bundle, now time.Time) error {
	if len(svid.Certificates) == 0 || svid.PrivateKey == nil {
		return errors.New("the certificate or its key is missing")
	}
	if err := Bounded(svid.Certificates); err != nil {
		return err
	}
	leaf := svid.Certificates[0]
	if !belongs(svid.PrivateKey, leaf) {
		return errors.New("the certificate is for another key")
	}
	if err := checkLife(leaf, now); err != nil {
		return err
	}
	at := now
	if leaf.NotBefore.After(at) {
		at = leaf.NotBefore
	}
	id, _, err := x509svid.Verify(svid.Certificates, bundle, x509svid.WithTime(at))
	switch {
	case !id.IsZero() && id != want:
		return fmt.Errorf("the certificate is for %s", id)
	case err != nil:
		return fmt.Errorf("the certificate does not verify: %w", err)
	case !usable(leaf, x509.ExtKeyUsageServerAuth) || !usable(leaf, x509.ExtKeyUsageClientAuth):
		return errors.New("the certificate does not allow both ends of TLS (extended key usage)")
	case leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return errors.New("the certificate does not allow TLS 1.3 (key usage digitalSignature is missing)")
	}
	return nil
}

// belongs compares by the method that all public keys of the standard library have.
func belongs(key crypto.Signer, leaf *x509.Certificate) bool {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(leaf.PublicKey)
}

func checkLife(leaf *x509.Certificate, now time.Time) error {
	switch left := leaf.NotAfter.Sub(now); {
	case left < minLeft:
		return fmt.Errorf("the certificate expired at %s", leaf.NotAfter.Format(time.RFC3339))
	case left > maxLife:
		return fmt.Errorf("the certificate is valid until %s, which is longer than %s", leaf.NotAfter.Format(time.RFC3339), maxLife)
	case leaf.NotBefore.Sub(now) > maxAhead:
		return fmt.Errorf("the certificate is not valid before %s: are the clocks right?", leaf.NotBefore.Format(time.RFC3339))
	}
	return nil
}

func usable(leaf *x509.Certificate, u x509.ExtKeyUsage) bool {
	if len(leaf.ExtKeyUsage) == 0 && len(leaf.UnknownExtKeyUsage) == 0 {
		return true
	}
	return slices.Contains(leaf.ExtKeyUsage, u) || slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny)
}
