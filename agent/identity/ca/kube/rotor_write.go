package kube

import (
	"context"
	"fmt"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/rotation"
)

// makeRoot makes the Secret of the root, unless another replica was faster.
func (r *Rotor) makeRoot(ctx context.Context) error {
	root, err := ca.NewRoot(r.domain, r.policy.Root)
	if err != nil {
		return err
	}
	cert, key, err := root.PEM()
	if err != nil {
		return err
	}
	defer clear(key)
	return r.createRoot(ctx, cert, key, "made")
}

// takeOver makes the root that an earlier Culvert signed with, and that all trust already, the root of an intermediate.
func (r *Rotor) takeOver(ctx context.Context, k *keyring) error {
	if _, err := ca.ParseRoot(k.signSecret.Data[ca.CertName], k.signSecret.Data[ca.KeyName]); err != nil {
		return err
	}
	return r.createRoot(ctx, k.signSecret.Data[ca.CertName], k.signSecret.Data[ca.KeyName], "taken over")
}

func (r *Rotor) createRoot(ctx context.Context, cert, key []byte, how string) error {
	s := &core.Secret{
		ObjectMeta: meta.ObjectMeta{Namespace: r.namespace, Name: RootSecretName, Labels: map[string]string{managedBy: "culvert"},
			Annotations: map[string]string{phaseNote: string(rotation.Stable)}},
		Type: core.SecretTypeOpaque,
		Data: map[string][]byte{ca.RootsName: cert, rootKeyName: key},
	}
	record(s, r.policy)
	if _, err := r.client.CoreV1().Secrets(r.namespace).Create(ctx, s, meta.CreateOptions{}); err != nil {
		return fmt.Errorf("secret %s/%s (create secrets): %w", r.namespace, RootSecretName, err)
	}
	r.log.Info("CA root "+how, "secret", r.namespace+"/"+RootSecretName)
	return nil
}

// sign makes what signs follow from the root's Secret. The intermediate is replaced unless only the bundle, or what is
// noted of it, is another.
func (r *Rotor) sign(ctx context.Context, k *keyring, policy rotation.Policy) error {
	now := r.now()
	roots := k.trusted(now)
	begins := !k.bundleIs(roots) || !k.belowRoot() || k.waitsAnew(now)
	m := ca.Material{Roots: ca.EncodeCertificates(roots)}
	if !k.state(now).Agrees && k.canSign(now) {
		d := k.signSecret.Data
		m.Cert, m.Key, m.Chain = d[ca.CertName], d[ca.KeyName], d[ca.ChainName]
	} else {
		made, err := k.root.Intermediate(r.domain, policy.Intermediate)
		if err != nil {
			return err
		}
		m.Cert, m.Key, m.Chain = made.Cert, made.Key, made.Chain
	}
	if _, err := ca.Load(r.domain, m); err != nil {
		return fmt.Errorf("what was made is not usable: %w", err)
	}
	s := &core.Secret{
		ObjectMeta: meta.ObjectMeta{Namespace: r.namespace, Name: SecretName, Labels: map[string]string{managedBy: "culvert"}},
		Type:       core.SecretTypeOpaque,
	}
	if k.signSecret != nil {
		s = k.signSecret.DeepCopy()
	}
	if s.Data == nil {
		s.Data = map[string][]byte{}
	}
	s.Data[ca.CertName], s.Data[ca.KeyName], s.Data[ca.ChainName], s.Data[ca.RootsName] = m.Cert, m.Key, m.Chain, m.Roots
	note(s, svidLifeNote, policy.SVID.String())
	if begins {
		note(s, sinceNote, now.UTC().Format(time.RFC3339Nano))
		note(s, waitedNote, "0s")
	}
	if k.signSecret != nil {
		return r.update(ctx, s)
	}
	if _, err := r.client.CoreV1().Secrets(r.namespace).Create(ctx, s, meta.CreateOptions{}); err != nil {
		return fmt.Errorf("secret %s/%s (create secrets): %w", r.namespace, SecretName, err)
	}
	return nil
}

func (r *Rotor) writeRoot(ctx context.Context, k *keyring, change func(*core.Secret) error) error {
	s := k.rootSecret.DeepCopy()
	note(s, phaseNote, string(k.phase))
	if err := change(s); err != nil {
		return err
	}
	return r.update(ctx, s)
}

// update writes what was read before and changed since, unless somebody else changed it meanwhile.
func (r *Rotor) update(ctx context.Context, s *core.Secret) error {
	if _, err := r.client.CoreV1().Secrets(r.namespace).Update(ctx, s, meta.UpdateOptions{}); err != nil {
		return fmt.Errorf("secret %s/%s (update secrets): %w", r.namespace, s.Name, err)
	}
	return nil
}

func note(s *core.Secret, key, value string) {
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	s.Annotations[key] = value
}
