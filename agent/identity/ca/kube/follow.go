package kube

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
)

// lookAgain is how often things are looked at when nothing seems to happen.
const lookAgain = time.Minute

// Run follows the Secret until ctx ends: what the leader or the operator puts into it is taken up. Load must have been
// called.
func (s *Store) Run(ctx context.Context) error {
	secret := newSlot(SecretName)
	var watches sync.WaitGroup
	watches.Go(func() { s.watchSecret(ctx, secret) })
	defer watches.Wait()
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	var taken string // resource version of the Secret that was looked at last
	for {
		if o, known := secret.get(); known {
			taken = s.takeUp(o, taken)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-secret.changed:
		case <-tick.C:
		}
	}
}

// takeUp puts the Secret's authority in force. One that is gone or broken changes nothing: what is in memory goes on.
func (s *Store) takeUp(o runtime.Object, taken string) string {
	secret, ok := o.(*core.Secret)
	if !ok {
		if taken != gone {
			s.log.Error("the CA's Secret was deleted: this replica goes on with what it has", "secret", s.ref(SecretName))
		}
		return gone
	}
	if secret.ResourceVersion == taken {
		return taken
	}
	authority, err := s.read(secret)
	if err != nil {
		s.log.Error("the CA's Secret was changed and is not taken up; trying again", "error", err)
		return "" // its certificates may only be from the future, by this replica's clock
	}
	s.longest.Store(int64(longest(secret)))
	if before := s.authority.Load(); !authority.Equal(before) {
		s.set(authority)
		level := slog.LevelWarn
		if madeHere(secret) && follows(authority, before) {
			level = slog.LevelInfo
		}
		s.log.Log(context.Background(), level, "CA changed: the Secret holds another one", "secret", s.ref(SecretName),
			"subject", authority.Certificate().Subject.String(), "sha256", ca.Fingerprint(authority.Certificate()), "roots", len(authority.Roots()))
	}
	return secret.ResourceVersion
}

// follows reports whether next is below a root that was trusted before, as in a rotation.
func follows(next, before *ca.Authority) bool {
	return before != nil && slices.ContainsFunc(before.Roots(), next.Roots()[0].Equal)
}

// gone stands for the resource version of an object that is not there.
const gone = "gone"

func (s *Store) watchSecret(ctx context.Context, into *slot) {
	secrets := s.client.CoreV1().Secrets(s.namespace)
	into.watch(ctx, s.client, &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o meta.ListOptions) (runtime.Object, error) {
			return secrets.List(ctx, o)
		},
		WatchFuncWithContext: secrets.Watch,
	}, &core.Secret{})
}
