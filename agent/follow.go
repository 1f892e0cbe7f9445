package agent

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	kubeletInterval = time.Second
	// kubeletLookup is how often the kubelet is looked for among all processes of the node, while it is not known or to
	// see that it still is the same.
	kubeletLookup = 15 * time.Second
)

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
			// What was proved once may be shared by now. It is looked for again soon: it may only be starting anew.
			*cgroup, *next = "", now.Add(kubeletInterval)
			return errors.Join(err, a.path.RefuseProbes())
		}
		*cgroup = found
	}
	if *cgroup == "" {
		return nil
	}
	return a.path.ExemptProbes(*cgroup)
}

// sandboxInterval is how often the runtime is asked whether pods are still in the sandboxes that are enforced. CNI tells
// at once; this is for sandboxes that were made while its configuration was somebody else's.
const sandboxInterval = 15 * time.Second

// followSandboxes notices pods that got another sandbox behind the agent's back.
func (a *Agent) followSandboxes(ctx context.Context) error {
	if a.Locator == nil {
		return nil
	}
	tick := time.NewTicker(sandboxInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		question, cancel := context.WithTimeout(ctx, searchTimeout)
		current, err := a.Locator.Current(question)
		cancel()
		if err != nil {
			a.log.Debug("container runtime not asked", "error", err)
			continue
		}
		a.post(func() { a.checkSandboxes(current) })
	}
}

func (a *Agent) checkSandboxes(current map[string]string) {
	moved := false
	for _, w := range a.byPod {
		id, runs := current[w.pod.SandboxUID()]
		if !runs || w.container == "" || id == w.container {
			continue
		}
		a.log.Warn("pod has another sandbox than the one that is enforced", "workload", w.pod.Ref())
		a.abandon(w)
		moved = true
	}
	if moved {
		a.enrollPods()
	}
}

// kernelInterval is how often the agent looks whether what it attached is still there.
const kernelInterval = time.Minute

// followKernel ends the agent when somebody took its programs or pins away: the next one makes them anew.
func (a *Agent) followKernel(ctx context.Context) error {
	tick := time.NewTicker(kernelInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := a.path.Intact(); err != nil {
				return fmt.Errorf("somebody took away what enforces here: %w", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}
