package istio

import (
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const (
	// maxLife bounds what a CA may give: an SVID cannot be taken back.
	maxLife = 366 * 24 * time.Hour
	minLeft = time.Second
	// maxAhead is how far the CA's clock may be ahead of ours. What is valid only from then on is good enough to be
	// shown to others.
	maxAhead = 5 * time.Minute
)

// check looks at an answer as a peer would, and at whether it answers what was asked. Roots in the answer count for
// nothing.
func check(s *x509svid.SVID, bundle *x509bundle.Bundle, now time.Time) error {
	leaf := s.Certificates[0]
	key, ok := s.PrivateKey.Public().(*ecdsa.PublicKey)
	if !ok || !key.Equal(leaf.PublicKey) {
		return errors.New("the certificate is for another key")
	}
	if err := checkLife(leaf, now); err != nil {
		return err
	}
	at := now
	if leaf.NotBefore.After(at) {
		at = leaf.NotBefore
	}
	id, _, err := x509svid.Verify(s.Certificates, bundle, x509svid.WithTime(at))
	switch {
	case err != nil && !id.IsZero() && id != s.ID, err == nil && id != s.ID:
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
