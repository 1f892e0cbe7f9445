package agent

import (
	"context"
	"time"
)

const (
	kubeletInterval = time.Second
	// kubeletLookup is how often the kubelet is looked for among all processes of the node, while it is not known or to
	// see that it still is the same.
	kubeletLookup = 15 * time.Second
)

// changingBundle is an Issuer whose roots may become others.
type changingBundle interface {
	// Changed returns a channel that is closed when Bundle is to return something else. Whoever asks for the channel
	// first and for the bundle then misses none.
	Changed() <-chan struct{}
}

// followBundle tells the tunnels new roots.
func (a *Agent) followBundle(ctx context.Context) error {
	issuer, ok := a.Issuer.(changingBundle)
	if !ok {
		return nil
	}
	for {
		changed := issuer.Changed()
		a.post(func() {
			bundle := a.keeper.Bundle()
			a.log.Info("trust bundle", "trust_domain", bundle.TrustDomain().Name(), "roots", len(bundle.X509Authorities()))
			for s := range a.sessions {
				s.send(bundleMessage(bundle))
			}
		})
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// followKubelet keeps the kubelet's own connections exempt from STRICT, wherever it runs.
func (a *Agent) followKubelet(ctx context.Context) error {
	if a.Kubelet == nil {
		return a.path.RefuseProbes() // a predecessor may have exempted them
	}
	var (
		cgroup, exempt, reported string
		next                     time.Time
	)
	tick := time.NewTicker(kubeletInterval)
	defer tick.Stop()
	for {
		err := a.exemptKubelet(&cgroup, &next)
		switch {
		case err != nil && err.Error() != reported:
			reported = err.Error()
			a.log.Warn("kubelet's probes are not exempt from STRICT", "error", err)
		case err == nil && cgroup != "" && (reported != "" || exempt != cgroup):
			exempt, reported = cgroup, ""
			a.log.Info("kubelet's probes are exempt from STRICT", "cgroup", cgroup)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (a *Agent) exemptKubelet(cgroup *string, next *time.Time) error {
	if now := time.Now(); now.After(*next) {
		*next = now.Add(kubeletLookup)
		found, err := a.Kubelet()
		if err != nil {
			*cgroup = ""
			return err
		}
		*cgroup = found
	}
	if *cgroup == "" {
		return nil
	}
	return a.path.ExemptProbes(*cgroup)
}
