package kube

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
)

// The objects, in the CA's own namespace.
const (
	SecretName    = "culvert-ca"
	ConfigMapName = "culvert-ca-root-cert"
)

const (
	requestTimeout = 10 * time.Second
	minRetry       = 500 * time.Millisecond
	maxRetry       = 15 * time.Second
	managedBy      = "app.kubernetes.io/managed-by"
)

// Store keeps the authority in a Secret and its roots in a ConfigMap. Any number of replicas share them: whoever
// creates the Secret first decides, and the others read it.
type Store struct {
	client    kubernetes.Interface
	namespace string
	domain    spiffeid.TrustDomain
	log       *slog.Logger

	authority atomic.Pointer[ca.Authority]
	published atomic.Bool
}

// NewStore returns a Store of the objects in namespace.
func NewStore(c *Client, namespace string, td spiffeid.TrustDomain, log *slog.Logger) *Store {
	return &Store{client: c.api, namespace: namespace, domain: td, log: log}
}

// Authority returns the authority in force, nil before Load. It may be another one at each call.
func (s *Store) Authority() *ca.Authority { return s.authority.Load() }

// Published reports whether the bundle has been seen in the ConfigMap as it is to be.
func (s *Store) Published() bool { return s.published.Load() }

// Load reads the authority, and makes it if there is none. While the API server gives no answer it tries again. A
// Secret that cannot be used is an error: it is somebody's root, and is never written over.
func (s *Store) Load(ctx context.Context) error {
	for wait := minRetry; ; wait = min(2*wait, maxRetry) {
		authority, err := s.loadOnce(ctx)
		if err == nil {
			s.authority.Store(authority)
			return nil
		}
		var broken *brokenError
		if errors.As(err, &broken) {
			return err
		}
		s.log.Error("CA's Secret not read; trying again", "secret", s.ref(SecretName), "retry_in", wait.String(), "error", err)
		if !pause(ctx, wait) {
			return fmt.Errorf("secret %s: %w", s.ref(SecretName), ctx.Err())
		}
	}
}

func (s *Store) loadOnce(ctx context.Context) (*ca.Authority, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	secrets := s.client.CoreV1().Secrets(s.namespace)
	secret, err := secrets.Get(ctx, SecretName, meta.GetOptions{})
	if apierrors.IsNotFound(err) {
		if secret, err = s.create(ctx); apierrors.IsAlreadyExists(err) {
			secret, err = secrets.Get(ctx, SecretName, meta.GetOptions{})
		}
	}
	if err != nil {
		return nil, fmt.Errorf("secret %s (get, create secrets): %w", s.ref(SecretName), err)
	}
	authority, err := s.read(secret)
	if err != nil {
		return nil, err
	}
	s.log.Info("CA loaded", "secret", s.ref(SecretName), "subject", authority.Certificate().Subject.String(),
		"sha256", fingerprint(authority), "expires", authority.NotAfter(), "roots", len(authority.Roots()))
	return authority, nil
}

// create makes a root and writes it, unless another replica was faster.
func (s *Store) create(ctx context.Context) (*core.Secret, error) {
	m, err := ca.Generate(s.domain)
	if err != nil {
		return nil, err
	}
	defer clear(m.Key)
	secret, err := s.client.CoreV1().Secrets(s.namespace).Create(ctx, &core.Secret{
		ObjectMeta: meta.ObjectMeta{Namespace: s.namespace, Name: SecretName, Labels: map[string]string{managedBy: "culvert"}},
		Type:       core.SecretTypeOpaque,
		Data:       map[string][]byte{ca.CertName: m.Cert, ca.KeyName: m.Key, ca.ChainName: m.Chain, ca.RootsName: m.Roots},
	}, meta.CreateOptions{})
	if err == nil {
		s.log.Info("CA root made", "secret", s.ref(SecretName))
	}
	return secret, err
}

// read makes an authority of a Secret.
func (s *Store) read(secret *core.Secret) (*ca.Authority, error) {
	authority, err := ca.Load(s.domain, ca.Material{
		Cert: secret.Data[ca.CertName], Key: secret.Data[ca.KeyName],
		Chain: secret.Data[ca.ChainName], Roots: secret.Data[ca.RootsName],
	})
	if err != nil {
		return nil, &brokenError{s.ref(SecretName), err}
	}
	return authority, nil
}

func (s *Store) ref(name string) string { return s.namespace + "/" + name }

// brokenError is a Secret that is there and cannot be used.
type brokenError struct {
	secret string
	err    error
}

func (e *brokenError) Error() string {
	return fmt.Sprintf("Secret %s cannot be used, and is left as it is (repair it; or delete it for a new root, which"+
		" cuts off all who trust the old one): %v", e.secret, e.err)
}

func (e *brokenError) Unwrap() error { return e.err }

func fingerprint(a *ca.Authority) string {
	sum := sha256.Sum256(a.Certificate().Raw)
	return hex.EncodeToString(sum[:])
}

// pause waits for about d; false if ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
