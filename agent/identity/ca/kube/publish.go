package kube

import (
	"context"
	"fmt"
	"sync"
	"time"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
)

// lookAgain is how often both objects are looked at when nothing seems to happen.
const lookAgain = time.Minute

// Run watches Secret and ConfigMap until ctx ends: what the operator puts into the Secret is taken up, and the
// ConfigMap is repaired. Load must have been called.
func (s *Store) Run(ctx context.Context) error {
	secret, bundle := newSlot(SecretName), newSlot(ConfigMapName)
	var watches sync.WaitGroup
	watches.Go(func() { s.watchSecret(ctx, secret) })
	watches.Go(func() { s.watchBundle(ctx, bundle) })
	defer watches.Wait()
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	var taken string // resource version of the Secret that was looked at last
	for {
		if o, known := secret.get(); known {
			taken = s.takeUp(o, taken)
		}
		retry := (<-chan time.Time)(nil)
		if o, known := bundle.get(); known {
			if err := s.publish(ctx, o); err != nil && ctx.Err() == nil {
				s.published.Store(false)
				s.log.Error("bundle not published; trying again", "configmap", s.ref(ConfigMapName), "error", err)
				retry = time.After(maxRetry / 4)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-secret.changed:
		case <-bundle.changed:
		case <-tick.C:
		case <-retry:
		}
	}
}

// takeUp puts the Secret's authority in force. One that is gone or broken changes nothing: what is in memory goes on.
func (s *Store) takeUp(o runtime.Object, taken string) string {
	secret, ok := o.(*core.Secret)
	if !ok {
		if taken != gone {
			s.log.Error("the CA's Secret was deleted: this replica goes on with the root that it has, but one that starts makes a new one",
				"secret", s.ref(SecretName))
		}
		return gone
	}
	if secret.ResourceVersion == taken {
		return taken
	}
	switch authority, err := s.read(secret); {
	case err != nil:
		s.log.Error("the CA's Secret was changed and is not taken up", "error", err)
	case !authority.Equal(s.authority.Load()):
		s.authority.Store(authority)
		s.published.Store(false)
		s.log.Warn("CA changed: the Secret holds another one", "secret", s.ref(SecretName),
			"subject", authority.Certificate().Subject.String(), "sha256", fingerprint(authority), "roots", len(authority.Roots()))
	}
	return secret.ResourceVersion
}

// gone stands for the resource version of an object that is not there.
const gone = "gone"

// publish makes the ConfigMap hold the roots. Other keys in it are left alone.
func (s *Store) publish(ctx context.Context, o runtime.Object) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	want := string(ca.EncodeCertificates(s.Authority().Roots()))
	maps := s.client.CoreV1().ConfigMaps(s.namespace)
	now, ok := o.(*core.ConfigMap)
	if !ok {
		_, err := maps.Create(ctx, &core.ConfigMap{
			ObjectMeta: meta.ObjectMeta{Namespace: s.namespace, Name: ConfigMapName, Labels: map[string]string{managedBy: "culvert"}},
			Data:       map[string]string{ca.RootsName: want},
		}, meta.CreateOptions{})
		return s.written("create", err)
	}
	if now.Data[ca.RootsName] == want {
		s.published.Store(true)
		return nil
	}
	changed := now.DeepCopy()
	if changed.Data == nil {
		changed.Data = map[string]string{}
	}
	changed.Data[ca.RootsName] = want
	_, err := maps.Update(ctx, changed, meta.UpdateOptions{})
	return s.written("update", err)
}

// written is the outcome of a write. If another replica was faster, the watch tells what it wrote.
func (s *Store) written(verb string, err error) error {
	switch {
	case err == nil:
		s.published.Store(true)
		s.log.Info("bundle published", "configmap", s.ref(ConfigMapName), "verb", verb)
		return nil
	case apierrors.IsAlreadyExists(err), apierrors.IsConflict(err), apierrors.IsNotFound(err) && verb == "update":
		return nil
	}
	return fmt.Errorf("ConfigMap %s (%s configmaps): %w", s.ref(ConfigMapName), verb, err)
}

func (s *Store) watchSecret(ctx context.Context, into *slot) {
	secrets := s.client.CoreV1().Secrets(s.namespace)
	into.watch(ctx, s.client, &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o meta.ListOptions) (runtime.Object, error) {
			return secrets.List(ctx, o)
		},
		WatchFuncWithContext: secrets.Watch,
	}, &core.Secret{})
}

func (s *Store) watchBundle(ctx context.Context, into *slot) {
	maps := s.client.CoreV1().ConfigMaps(s.namespace)
	into.watch(ctx, s.client, &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o meta.ListOptions) (runtime.Object, error) {
			return maps.List(ctx, o)
		},
		WatchFuncWithContext: maps.Watch,
	}, &core.ConfigMap{})
}
