package kube

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	core "k8s.io/api/core/v1"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/rotation"
)

// RootSecretName is the Secret with the root's key, which a CA that made its root itself has beside SecretName. What is
// in it says in which phase a rotation is; what is in SecretName follows from it. No step writes both, so a crash
// between two writes leaves the first done and the second to do.
const RootSecretName = "culvert-ca-root"

// What the Secret of the root holds, beside ca.RootsName, the root's certificate.
const (
	rootKeyName  = "root-key.pem"
	nextCertName = "next-root-cert.pem" // announced, and not yet signing
	nextKeyName  = "next-root-key.pem"
	oldCertName  = "old-root-cert.pem" // no longer signing, and still trusted; its key is gone
)

// Annotations of the Secret of the root.
const (
	phaseNote            = "culvert.dev/ca-phase"
	rootLifeNote         = "culvert.dev/ca-root-ttl" // these four say what the leader goes by
	intermediateLifeNote = "culvert.dev/ca-intermediate-ttl"
	overlapNote          = "culvert.dev/ca-root-overlap"
	svidLifeNote         = "culvert.dev/ca-longest-svid-ttl" // grows only: certificates of that life may be about
	// It is in the Secret that signs as well, where replicas read that they may not sign for longer.

	// RotateRootNote and RotateIntermediateNote ask for a rotation: what was made before the time in them (RFC 3339)
	// is replaced. Asking twice for the same time is asking once.
	RotateRootNote         = "culvert.dev/rotate-root"
	RotateIntermediateNote = "culvert.dev/rotate-intermediate"
)

// maxClockSkew is how far the clocks of two leaders may be apart without any consequence.
const maxClockSkew = 5 * time.Minute

// Annotations of the Secret that signs.
const (
	sinceNote  = "culvert.dev/ca-bundle-since"  // when the bundle, or the root that signs, became what it is
	waitedNote = "culvert.dev/ca-bundle-waited" // how long leaders have seen it so, by clocks that nobody sets
)

// keyring is both Secrets as read. Only a leader reads the keys of roots.
type keyring struct {
	rootSecret, signSecret *core.Secret // nil: there is none

	phase     rotation.Phase
	root      *ca.Root
	next      *ca.Root          // in Announce
	old       *x509.Certificate // in Retire
	recorded  rotation.Policy
	asked     [2]time.Time // for a root, for an intermediate
	badNote   error        // an annotation that cannot be read; it is as if it were absent
	signing   *x509.Certificate
	bundle    []*x509.Certificate
	since     time.Time
	waited    time.Duration
	longest   time.Duration // life of an SVID, as those who sign are told
	signOwner bool          // of the Secret that signs: Culvert
}

// readKeyring reads the two Secrets. It fails if one of them cannot be understood, and then nothing may be written.
func readKeyring(root, sign *core.Secret) (*keyring, error) {
	k := &keyring{rootSecret: root, signSecret: sign, phase: rotation.Stable}
	if root != nil {
		if err := k.readRoot(root); err != nil {
			return nil, fmt.Errorf("secret %s: %w", RootSecretName, err)
		}
	}
	if sign != nil {
		if err := k.readSigning(sign); err != nil {
			return nil, fmt.Errorf("secret %s: %w", SecretName, err)
		}
	}
	return k, nil
}

func (k *keyring) readRoot(s *core.Secret) (err error) {
	if k.root, err = ca.ParseRoot(s.Data[ca.RootsName], s.Data[rootKeyName]); err != nil {
		return err
	}
	k.phase = rotation.Phase(s.Annotations[phaseNote])
	switch k.phase {
	case rotation.Stable:
	case rotation.Announce:
		if k.next, err = ca.ParseRoot(s.Data[nextCertName], s.Data[nextKeyName]); err != nil {
			return fmt.Errorf("next %w", err)
		}
	case rotation.Retire:
		certs, err := ca.ParseCertificates(s.Data[oldCertName])
		if err != nil {
			return fmt.Errorf("%s: %w", oldCertName, err)
		}
		k.old = certs[0]
	default:
		return fmt.Errorf("annotation %s: phase %q is not known", phaseNote, k.phase)
	}
	k.recorded = rotation.Policy{Root: k.duration(s, rootLifeNote), Intermediate: k.duration(s, intermediateLifeNote),
		Overlap: k.duration(s, overlapNote), SVID: k.duration(s, svidLifeNote)}
	k.asked = [2]time.Time{k.time(s, RotateRootNote), k.time(s, RotateIntermediateNote)}
	return nil
}

func (k *keyring) readSigning(s *core.Secret) error {
	certs, err := ca.ParseCertificates(s.Data[ca.CertName])
	if err != nil {
		return fmt.Errorf("%s: %w", ca.CertName, err)
	}
	k.signing = certs[0]
	if k.bundle, err = ca.ParseCertificates(s.Data[ca.RootsName]); err != nil {
		return fmt.Errorf("%s: %w", ca.RootsName, err)
	}
	k.since, k.waited, k.signOwner = k.time(s, sinceNote), k.duration(s, waitedNote), madeHere(s)
	k.longest = k.duration(s, svidLifeNote)
	return nil
}

func madeHere(s *core.Secret) bool { return s.Labels[managedBy] == "culvert" }

func (k *keyring) time(s *core.Secret, note string) time.Time {
	text := s.Annotations[note]
	if text == "" {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		k.badNote = errors.Join(k.badNote, fmt.Errorf("annotation %s of Secret %s: %w", note, s.Name, err))
	}
	return t
}

func (k *keyring) duration(s *core.Secret, note string) time.Duration {
	text := s.Annotations[note]
	if text == "" {
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		k.badNote = errors.Join(k.badNote, fmt.Errorf("annotation %s of Secret %s: %w", note, s.Name, err))
	}
	return d
}

// kind is whose a CA is.
type kind string

const (
	none     kind = "none"
	own      kind = "culvert"  // made here, with its root
	operator kind = "operator" // never written
	earlier  kind = "earlier"  // made by a Culvert whose root signed by itself; its root can be taken over
	orphan   kind = "orphan"   // made here, and the Secret of its root is gone: it ends when what signs expires
)

func (k *keyring) kind() kind {
	switch {
	case k.rootSecret == nil && k.signSecret == nil:
		return none
	case k.rootSecret == nil && k.signOwner && selfMade(k.signing) && len(k.bundle) == 1 && k.bundle[0].Equal(k.signing):
		return earlier
	case k.rootSecret == nil && k.signOwner:
		return orphan
	case k.rootSecret == nil, k.signSecret != nil && !k.leadsHere():
		return operator
	}
	return own
}

func selfMade(c *x509.Certificate) bool {
	return strings.HasPrefix(c.Subject.CommonName, ca.RootName) && bytes.Equal(c.RawIssuer, c.RawSubject)
}

// leadsHere reports whether what signs is below one of the roots kept here, or is one.
func (k *keyring) leadsHere() bool {
	for _, r := range k.roots() {
		if k.signing.Equal(r) || k.signing.CheckSignatureFrom(r) == nil {
			return true
		}
	}
	return false
}

// roots are those that the phase wants in the bundle; the first is the one that signs.
func (k *keyring) roots() []*x509.Certificate {
	roots := []*x509.Certificate{k.root.Certificate()}
	if k.next != nil {
		roots = append(roots, k.next.Certificate())
	}
	if k.old != nil {
		roots = append(roots, k.old)
	}
	return roots
}

// trusted is roots without those that have expired, or that were made while the clock was wrong and are not valid yet.
func (k *keyring) trusted(now time.Time) []*x509.Certificate {
	var trusted []*x509.Certificate
	for _, r := range k.roots() {
		if live(r, now) {
			trusted = append(trusted, r)
		}
	}
	return trusted
}

func live(c *x509.Certificate, now time.Time) bool {
	return now.Before(c.NotAfter) && !now.Before(c.NotBefore)
}

func (k *keyring) belowRoot() bool {
	return k.signing != nil && !k.signing.Equal(k.root.Certificate()) && k.signing.CheckSignatureFrom(k.root.Certificate()) == nil
}

func (k *keyring) bundleIs(roots []*x509.Certificate) bool {
	return bytes.Equal(ca.EncodeCertificates(k.bundle), ca.EncodeCertificates(roots))
}

// state is what the decision is made of.
func (k *keyring) state(now time.Time) rotation.State {
	s := rotation.State{Phase: k.phase, Since: k.since, Waited: k.waited,
		Root: life(k.root.Certificate()), RootAsked: k.asked[0], IntermediateAsked: k.asked[1]}
	if k.signing != nil {
		s.Intermediate = life(k.signing)
		s.Agrees = k.belowRoot() && k.bundleIs(k.trusted(now)) && !now.Before(k.signing.NotBefore) && !k.waitsAnew(now) &&
			k.longest == k.recorded.SVID
	}
	return s
}

// waitsAnew reports that nobody knows since when the bundle is as it is: the annotation is lost, or the clock has been set
// back since it was written.
func (k *keyring) waitsAnew(now time.Time) bool {
	return k.since.IsZero() || k.since.After(now.Add(maxClockSkew))
}

// canSign reports whether what signs is below the root and is valid.
func (k *keyring) canSign(now time.Time) bool {
	return k.belowRoot() && live(k.signing, now)
}

func life(c *x509.Certificate) rotation.Life {
	return rotation.Life{Made: ca.Made(c), Ends: c.NotAfter}
}
