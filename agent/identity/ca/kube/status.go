package kube

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	coordination "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/rotation"
)

// Status is what people want to know of a CA. It holds no key.
type Status struct {
	Kind         string         `json:"kind"` // culvert, operator, earlier, orphan or none
	Phase        rotation.Phase `json:"phase,omitempty"`
	Since        *time.Time     `json:"since,omitempty"` // the bundle is as it is
	Waited       string         `json:"waited,omitempty"`
	Wait         string         `json:"wait,omitempty"` // how long the phase takes at least
	Roots        []Certificate  `json:"roots"`
	Intermediate *Certificate   `json:"intermediate,omitempty"`
	Next         *rotation.Step `json:"next,omitempty"`
	Leader       string         `json:"leader,omitempty"`
	Problem      string         `json:"problem,omitempty"`
}

// Certificate is what tells one from another.
type Certificate struct {
	Role      string    `json:"role"`
	Subject   string    `json:"subject"`
	Serial    string    `json:"serial"`
	SHA256    string    `json:"sha256"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
}

// ErrNotOurs is that a CA is the operator's, who rotates it.
var ErrNotOurs = errors.New("the CA was not made by Culvert: there is no Secret " + RootSecretName + ", and whoever made the CA rotates it")

// ReadStatus reads the Secrets of the CA in namespace.
func ReadStatus(ctx context.Context, c *Client, namespace string) (*Status, error) {
	k, err := (&Rotor{client: c.api, namespace: namespace}).read(ctx)
	if err != nil {
		return nil, err
	}
	s := &Status{Kind: string(k.kind())}
	if k.badNote != nil {
		s.Problem = k.badNote.Error()
	}
	lease, err := c.api.CoordinationV1().Leases(namespace).Get(ctx, LeaseName, meta.GetOptions{})
	if err == nil {
		s.Leader = holder(lease)
	}
	if k.signing != nil {
		s.Intermediate = certificate("signs", k.signing)
	}
	if k.kind() == own {
		s.ownRoots(k)
		return s, nil
	}
	for _, r := range k.bundle {
		s.Roots = append(s.Roots, *certificate("trusted", r))
	}
	return s, nil
}

func (s *Status) ownRoots(k *keyring) {
	s.Phase = k.phase
	s.Roots = append(s.Roots, *certificate("signs", k.root.Certificate()))
	if k.next != nil {
		s.Roots = append(s.Roots, *certificate("next", k.next.Certificate()))
	}
	if k.old != nil {
		s.Roots = append(s.Roots, *certificate("old", k.old))
	}
	now := time.Now()
	next := k.recorded.Next(k.state(now), now)
	s.Next = &next
	if !k.since.IsZero() {
		s.Since = &k.since
	}
	if wait := k.recorded.Wait(k.phase); wait > 0 {
		s.Wait, s.Waited = wait.String(), k.waited.String()
	}
}

func holder(l *coordination.Lease) string {
	if l.Spec.HolderIdentity == nil {
		return ""
	}
	return *l.Spec.HolderIdentity
}

func certificate(role string, c *x509.Certificate) *Certificate {
	return &Certificate{Role: role, Subject: c.Subject.String(), Serial: c.SerialNumber.Text(16), SHA256: ca.Fingerprint(c),
		NotBefore: c.NotBefore, NotAfter: c.NotAfter}
}

// Rotate asks for a new root or intermediate, as `kubectl annotate` can: note is RotateRootNote or
// RotateIntermediateNote. Whatever was made before when is replaced, so asking twice does no more than asking once.
func Rotate(ctx context.Context, c *Client, namespace, note string, when time.Time) error {
	// Certificates count in whole seconds.
	when = when.Add(time.Second - time.Nanosecond).Truncate(time.Second)
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{note: when.UTC().Format(time.RFC3339)}}})
	if err != nil {
		return err
	}
	_, err = c.api.CoreV1().Secrets(namespace).Patch(ctx, RootSecretName, types.MergePatchType, patch, meta.PatchOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return ErrNotOurs
	case err != nil:
		return fmt.Errorf("secret %s/%s (patch secrets): %w", namespace, RootSecretName, err)
	}
	return nil
}
