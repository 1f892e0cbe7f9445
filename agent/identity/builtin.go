package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
)

// InProcess is an Issuer whose CA lives in the agent itself: for the demo, tests and hosts without a
// control plane.
type InProcess struct {
	Authority *ca.Authority
	Life      time.Duration // of each SVID; more than 0
}

// Issue makes a P-256 key in memory and has it signed.
func (p *InProcess) Issue(_ context.Context, w Workload) (*SVID, error) {
	id := w.ID
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("SVID %s: key: %w", id, err)
	}
	chain, err := p.Authority.Sign(id, &key.PublicKey, p.Life)
	if err != nil {
		return nil, fmt.Errorf("SVID: %w", err)
	}
	return &SVID{SVID: x509svid.SVID{ID: id, Certificates: chain, PrivateKey: key}}, nil
}

// Bundles returns the roots of the trust domain.
func (p *InProcess) Bundles() []*x509bundle.Bundle { return []*x509bundle.Bundle{p.Authority.Bundle()} }

// String implements Issuer.
func (p *InProcess) String() string { return "root of this agent's own" }
