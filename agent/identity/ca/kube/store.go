package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
)

// SecretName is the Secret that signs, in the CA's own namespace.
const SecretName = "culvert-ca"

const (
	requestTimeout = 10 * time.Second
	minRetry       = 500 * time.Millisecond
	maxRetry       = 15 * time.Second
	managedBy      = "app.kubernetes.io/managed-by"
)

// Store is what a replica signs with: the authority in a Secret that all replicas share.
type Store struct {
	client    kubernetes.Interface
	namespace string
	domain    spiffeid.TrustDomain
	log       *slog.Logger

	authority atomic.Pointer[ca.Authority]
	longest   atomic.Int64 // LongestSVID

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when the authority is another
}

// NewStore returns a Store of the objects in namespace.
func NewStore(c *Client, namespace string, td spiffeid.TrustDomain, log *slog.Logger) *Store {
	return &Store{client: c.api, namespace: namespace, domain: td, log: log, changed: make(chan struct{})}
}

// Authority returns the authority in force, nil before Load. It may be another one at each call.
func (s *Store) Authority() *ca.Authority { return s.authority.Load() }

// LongestSVID is the longest life of an SVID that the leader reckons with when it drops a root; zero if that is not known.
func (s *Store) LongestSVID() time.Duration { return time.Duration(s.longest.Load()) }

// longest reads it. What cannot be read, the leader writes anew.
func longest(secret *core.Secret) time.Duration {
	d, err := time.ParseDuration(secret.Annotations[svidLifeNote])
	if err != nil {
		return 0
	}
	return max(d, 0)
}

// Changed returns a channel that is closed when Authority is to return another one. Ask for the channel first, then for
// the authority, and no change is missed.
func (s *Store) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s *Store) set(a *ca.Authority) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.authority.Store(a)
	close(s.changed)
	s.changed = make(chan struct{})
}

// Load reads the authority. It waits until the leader has made one, and tries again while the API server gives no
// answer. A Secret that cannot be used is an error, unless it was made here: then the leader can make another, for
// instance of an intermediate that expired while the cluster was off.
func (s *Store) Load(ctx context.Context) error {
	for wait := minRetry; ; wait = min(2*wait, maxRetry) {
		authority, err := s.loadOnce(ctx)
		if err == nil {
			s.set(authority)
			return nil
		}
		var broken *brokenError
		switch {
		case errors.As(err, &broken) && !broken.madeHere:
			return err
		case apierrors.IsNotFound(err):
			if wait != minRetry { // not in the very first moment
				s.log.Info("waiting for the leader to make the CA", "secret", s.ref(SecretName), "lease", s.ref(LeaseName))
			}
		default:
			s.log.Error("CA's Secret not read; trying again", "secret", s.ref(SecretName), "retry_in", wait.String(), "error", err)
		}
		if !pause(ctx, wait) {
			return fmt.Errorf("secret %s: %w", s.ref(SecretName), ctx.Err())
		}
	}
}

func (s *Store) loadOnce(ctx context.Context) (*ca.Authority, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	secret, err := s.client.CoreV1().Secrets(s.namespace).Get(ctx, SecretName, meta.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("secret %s (get secrets): %w", s.ref(SecretName), err)
	}
	authority, err := s.read(secret)
	if err != nil {
		return nil, err
	}
	s.longest.Store(int64(longest(secret)))
	s.log.Info("CA loaded", "secret", s.ref(SecretName), "subject", authority.Certificate().Subject.String(),
		"sha256", ca.Fingerprint(authority.Certificate()), "expires", authority.NotAfter(), "roots", len(authority.Roots()))
	return authority, nil
}

// read makes an authority of a Secret.
func (s *Store) read(secret *core.Secret) (*ca.Authority, error) {
	authority, err := ca.Load(s.domain, material(secret))
	if err != nil {
		return nil, &brokenError{s.ref(SecretName), madeHere(secret), err}
	}
	return authority, nil
}

func material(s *core.Secret) ca.Material {
	return ca.Material{Cert: s.Data[ca.CertName], Key: s.Data[ca.KeyName], Chain: s.Data[ca.ChainName], Roots: s.Data[ca.RootsName]}
}

func (s *Store) ref(name string) string { return s.namespace + "/" + name }

// brokenError is a Secret that is there and cannot be used.
type brokenError struct {
	secret   string
	madeHere bool
	err      error
}

func (e *brokenError) Error() string {
	return fmt.Sprintf("Secret %s cannot be used, and is left as it is (repair it; or delete it for a new root, which"+
		" cuts off all who trust the old one): %v", e.secret, e.err)
}

func (e *brokenError) Unwrap() error { return e.err }

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
