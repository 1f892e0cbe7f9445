package identity

import (
	"context"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Workload is a pod of this node that is to have an identity.
type Workload struct {
	ID             spiffeid.ID
	Namespace      string
	ServiceAccount string
	Pod            string // its name
	UID            string // empty when there is no Kubernetes that gives one
}

// SVID is a certificate chain with its key, and whom its holder talks to beside its own trust domain.
type SVID struct {
	x509svid.SVID
	// FederatesWith are the trust domains whose members may be peers. Their roots are among the Issuer's Bundles.
	FederatesWith []spiffeid.TrustDomain
}

// Issuer gives out SVIDs and the roots to verify those of others. All methods are safe for concurrent use.
type Issuer interface {
	// Issue returns an SVID for w.ID. Its key was made for this call, or came with it, and belongs to the caller.
	Issue(ctx context.Context, w Workload) (*SVID, error)
	// Bundles returns the roots by trust domain, the own one first. It may be without roots as long as they are not known.
	Bundles() []*x509bundle.Bundle
	// String names the Issuer for people: its kind, and where it is.
	String() string
}

// Notifier is an Issuer whose roots may change.
type Notifier interface {
	Issuer
	// Changed returns a channel that is closed when Bundles is to return something else than before. Ask for the
	// channel first, then for the bundles, and no change is missed.
	Changed() <-chan struct{}
}

// Watcher is an Issuer that tells by itself when an SVID is replaced. It is not asked for renewals.
type Watcher interface {
	Issuer
	// Watch calls got with w's SVID and with each that takes its place. It returns when ctx ends or when it cannot go
	// on, and then always with an error; whoever calls it waits a while and calls again.
	Watch(ctx context.Context, w Workload, got func(*SVID)) error
}
