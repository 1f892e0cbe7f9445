package report

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// An ordinary election has every candidate read the Lease every RetryPeriod: with 1,000 agents and 20 s up to 50
// reads a second, each of them from etcd. Here, agents look at the Lease every two to four minutes, 5.6 reads a
// second, and enter the election only when nobody seems to hold it. The election itself is client-go's, which
// compares no clocks of different machines. When a leader dies, some agent of a large cluster looks within a second of
// the Lease's being two minutes old, and leads about a minute and a half later; with two nodes it may take seven
// minutes. A leader that ends in an orderly way gives the Lease back. Nothing but the status of policies waits for it.
type timing struct {
	lease, renew, retry time.Duration
	lookMin, lookMax    time.Duration
	// stale is the age at which a Lease is suspected, by clocks that may differ.
	stale time.Duration
	// patience ends the part in an election that another agent won.
	patience time.Duration
	tick     time.Duration
}

func sparse() timing {
	return timing{
		lease: 60 * time.Second, renew: 40 * time.Second, retry: 20 * time.Second,
		lookMin: 2 * time.Minute, lookMax: 4 * time.Minute,
		stale: 2 * time.Minute, patience: 150 * time.Second,
		tick: 30 * time.Second,
	}
}

const (
	verbGetLease    = "get leases.coordination.k8s.io"
	verbUpdateLease = "create or update leases.coordination.k8s.io"
)

// elections goes on until ctx ends.
func (s *PolicyStatus) elections(ctx context.Context) {
	// The first look comes soon, but not from all agents of a rollout at once.
	wait := rand.N(s.timing.retry / 2)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if s.vacant(ctx) {
			s.stand(ctx)
		}
		wait = s.timing.lookMin + rand.N(s.timing.lookMax-s.timing.lookMin)
	}
}

// vacant reports whether the Lease seems to be held by nobody.
func (s *PolicyStatus) vacant(ctx context.Context) bool {
	ctx, stop := context.WithTimeout(ctx, requestTimeout)
	defer stop()
	lease, err := s.Client.CoordinationV1().Leases(s.Namespace).Get(ctx, LeaseName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return true
	case err != nil:
		s.once.failed(verbGetLease, "lease not read; the status of policies may not be written", err)
		return false
	}
	s.once.worked(verbGetLease)
	holder := lease.Spec.HolderIdentity
	if holder == nil || *holder == "" || *holder == s.Identity || lease.Spec.RenewTime == nil {
		return true
	}
	return time.Since(lease.Spec.RenewTime.Time) > s.timing.stale
}

// stand takes part in one election, and does the work if it wins, until it loses the Lease or ctx ends.
func (s *PolicyStatus) stand(ctx context.Context) {
	lock := &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: s.Namespace, Name: LeaseName},
		Client:     s.Client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: s.Identity},
	}
	elected := make(chan struct{})
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock, Name: LeaseName,
		LeaseDuration: s.timing.lease, RenewDeadline: s.timing.renew, RetryPeriod: s.timing.retry,
		Callbacks: leaderelection.LeaderCallbacks{
			// It is called on a goroutine that nobody waits for, so it does nothing else.
			OnStartedLeading: func(context.Context) { close(elected) },
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		s.once.failed(verbUpdateLease, "no election", err)
		return
	}
	// The Lease outlives the work: it is held until the last write has ended.
	holding, letGo := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		elector.Run(holding)
	}()
	defer func() {
		letGo()
		<-ended
		s.release(lock)
	}()
	select {
	case <-ctx.Done():
		return
	case <-time.After(s.timing.patience):
		return
	case <-ended:
		return
	case <-elected:
	}
	working, stop := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() { s.write(working) })
	select {
	case <-ctx.Done():
	case <-ended:
		s.Logger.Warn("this agent no longer writes the status of policies: it could not renew its lease")
	}
	stop()
	work.Wait()
}

// release gives the Lease back if it is still ours, so that the next one need not wait for it to expire. It does
// not hold up the end of the agent when the API server is away.
func (s *PolicyStatus) release(lock *resourcelock.LeaseLock) {
	ctx, stop := context.WithTimeout(context.Background(), 2*time.Second)
	defer stop()
	record, _, err := lock.Get(ctx)
	if err != nil || record.HolderIdentity != s.Identity {
		return
	}
	record.HolderIdentity = ""
	record.LeaseDurationSeconds = 1
	if err := lock.Update(ctx, *record); err != nil {
		s.Logger.Warn("lease not given back", "error", err)
	}
}
