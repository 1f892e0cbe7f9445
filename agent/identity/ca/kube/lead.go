package kube

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// LeaseName is the Lease that the leader holds.
const LeaseName = "culvert-ca"

// LeaseDuration is how long the others wait for a leader that is gone without a word.
const LeaseDuration = 15 * time.Second

// Election decides which replica leads.
type Election struct {
	client              kubernetes.Interface
	namespace, identity string
	duration            time.Duration
	metrics             *Metrics
	elector             atomic.Pointer[leaderelection.LeaderElector]
	known               atomic.Bool
}

// NewElection returns an Election under that Lease, in which identity takes part.
func NewElection(c *Client, namespace, identity string, duration time.Duration, m *Metrics) *Election {
	return &Election{client: c.api, namespace: namespace, identity: identity, duration: duration, metrics: m}
}

// Leader reports whether a leader has ever been known, and whether this replica leads as far as it knows.
func (e *Election) Leader() (known, self bool) {
	elector := e.elector.Load()
	if elector == nil {
		return false, false
	}
	if elector.GetLeader() != "" {
		e.known.Store(true)
	}
	return e.known.Load(), elector.IsLeader()
}

// Run takes part until ctx ends. lead runs while this replica leads, and has to end soon after its context.
func (e *Election) Run(ctx context.Context, lead func(context.Context)) error {
	for ctx.Err() == nil {
		if err := e.once(ctx, lead); err != nil {
			return fmt.Errorf("election under Lease %s/%s: %w", e.namespace, LeaseName, err)
		}
	}
	return nil
}

// once returns when this replica no longer leads, or never came to.
func (e *Election) once(ctx context.Context, lead func(context.Context)) error {
	var leading term
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Name: LeaseName,
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  meta.ObjectMeta{Namespace: e.namespace, Name: LeaseName},
			Client:     e.client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: e.identity},
		},
		LeaseDuration: e.duration, RenewDeadline: e.duration * 2 / 3, RetryPeriod: e.duration / 8,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				leading.run(func() {
					e.metrics.leader.Set(1)
					defer e.metrics.leader.Set(0)
					lead(ctx)
				})
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return err
	}
	e.elector.Store(elector)
	elector.Run(ctx)
	leading.end()
	return nil
}

// term waits for what leaderelection starts in a goroutine that it does not wait for, and that may come late.
type term struct {
	mu    sync.Mutex
	over  bool
	tasks sync.WaitGroup
}

func (t *term) run(f func()) {
	t.mu.Lock()
	if t.over {
		t.mu.Unlock()
		return
	}
	t.tasks.Add(1)
	t.mu.Unlock()
	defer t.tasks.Done()
	f()
}

func (t *term) end() {
	t.mu.Lock()
	t.over = true
	t.mu.Unlock()
	t.tasks.Wait()
}
