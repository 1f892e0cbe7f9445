package server

import (
	"context"
	"log/slog"
	"sync"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/kube"
)

// leader is what one replica does for all: it makes and rotates root and intermediate, and publishes the bundle.
type leader struct {
	election    *kube.Election
	rotor       *kube.Rotor
	distributor *kube.Distributor
	store       *kube.Store
	log         *slog.Logger
}

func newLeader(o Options, client *kube.Client, store *kube.Store, m *kube.Metrics) *leader {
	d := kube.NewDistributor(client, o.Namespace, m, o.Logger)
	loaded := func() bool { return store.Authority() != nil }
	return &leader{
		election:    kube.NewElection(client, o.Namespace, o.Identity, o.LeaseDuration, m),
		rotor:       kube.NewRotor(client, o.Namespace, o.TrustDomain, o.policy(), loaded, d, m, o.Logger),
		distributor: d, store: store, log: o.Logger,
	}
}

func (l *leader) run(ctx context.Context) error {
	return l.election.Run(ctx, func(ctx context.Context) {
		l.log.Info("this replica leads: it rotates root and intermediate, and publishes the bundle")
		defer l.log.Info("this replica no longer leads")
		var tasks sync.WaitGroup
		tasks.Go(func() { l.rotor.Run(ctx) })
		tasks.Go(func() { l.distributor.Run(ctx) })
		tasks.Wait()
	})
}

// condition is that somebody leads; and if this replica does, that agents can read the bundle.
func (l *leader) condition() (missing string) {
	known, self := l.election.Leader()
	switch a := l.store.Authority(); {
	case !known:
		return "no replica is known to lead"
	case self && l.rotor.Lost() != "":
		return l.rotor.Lost()
	case self && (a == nil || !l.distributor.Published(string(ca.EncodeCertificates(a.Roots())))):
		return "the bundle is not published"
	}
	return ""
}
