package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/policy"
)

// sweepDelays are when open plaintext is looked for again after a port turned STRICT: a handshake that was in
// flight when the map changed may complete later.
var sweepDelays = [...]time.Duration{100 * time.Millisecond, 400 * time.Millisecond, 1500 * time.Millisecond}

var errEmpty = errors.New("it has neither a Namespace nor a Pod; to return all pods to plain networking stop the agent and run culvert uninstall")

type sweep struct {
	at time.Time
	id uint64
}

// apply makes a snapshot hold: policies, local pods, their modes, what is captured, the routes in use.
func (a *Agent) apply(s *source.Snapshot) {
	begin := time.Now()
	if s.Empty() {
		// More likely a volume that is not mounted than the wish to open every pod.
		a.reportProblems(append(slices.Clip(s.Problems), source.Problem{Object: "configuration", Err: errEmpty}))
		a.skipped = true
		return
	}
	changes := s.Changes
	changes.All = changes.All || a.skipped
	a.skipped = false
	a.snapshot = s
	a.indexPolicies(&changes)
	if changes.All || changes.Problems {
		a.reportProblems(s.Problems)
	}
	a.capture(&changes)
	if changes.All || changes.Local || len(changes.Namespaces) > 0 {
		a.wanted = a.wantedPods()
	}
	written := false
	for ref, w := range a.byPod {
		// New policies go with the new labels: with the old ones they might open what neither opens.
		if pod := a.wanted[ref]; pod != nil && w.isPlaceOf(pod) {
			renewed := pod != w.listed
			if renewed {
				a.renew(w, pod)
				a.touchWorkload(w)
				if pod.Redirection == source.RedirectionAbsent {
					a.tellEnrolled(w.pod)
				}
			}
			if renewed || a.policiesTouched(w, &changes) {
				written = a.applyModes(w) || written
			}
		}
	}
	if written {
		a.metrics.ModesWritten(changes.Arrived)
	}
	if changes.All || changes.Local || len(changes.Namespaces) > 0 {
		a.enrollPods()
		a.retryAdditions()
	}
	a.updateRoutes(&changes)
	a.generation++
	a.logApplied(&changes, time.Since(begin))
	a.ready()
}

// policiesTouched reports whether the modes of a workload whose labels are the same may be others.
func (a *Agent) policiesTouched(w *workload, c *source.Changes) bool {
	_, own := c.Policies[w.pod.Namespace]
	_, mesh := c.Policies[a.RootNamespace]
	return own || mesh || c.All || c.Problems
}

// ready tells once that the first snapshot holds.
func (a *Agent) ready() {
	if a.OnReady != nil {
		a.OnReady()
		a.OnReady = nil
	}
}

// logApplied is quiet about what concerns other nodes only: on a large cluster that changes many times a second.
func (a *Agent) logApplied(c *source.Changes, took time.Duration) {
	level := slog.LevelDebug
	if c.All || c.Local || c.Rules || len(c.Policies) > 0 || len(c.Namespaces) > 0 {
		level = slog.LevelInfo
	}
	a.log.Log(context.Background(), level, "snapshot applied", "generation", a.generation, "pods", a.snapshot.Pods(),
		"enrolled_here", len(a.workloads), "problems", len(a.snapshot.Problems), "took", took.String())
}

func (a *Agent) indexPolicies(c *source.Changes) {
	switch {
	case c.All || a.policies == nil:
		a.policies = policy.NewSet(a.RootNamespace, a.snapshot.AllPolicies())
	case len(c.Policies) > 0:
		changed := make(map[string][]policy.PeerAuthentication, len(c.Policies))
		for namespace := range c.Policies {
			changed[namespace] = a.snapshot.Policies(namespace)
		}
		a.policies = a.policies.With(changed)
	}
	if c.All || c.Rules || a.rules == nil {
		a.rules = policy.NewRuleSet(a.RootNamespace, a.ClusterDomain, a.snapshot.AllRules())
	}
}

// capture tells the kernel what connections are captured for: the ranges of pods and Services, and what is known
// outside of them.
func (a *Agent) capture(c *source.Changes) {
	const key = "captured addresses"
	var err error
	if c.All || c.Ranges || a.outside == nil {
		err = a.captureAll()
	} else if add, remove := a.outsideChanges(c); len(add)+len(remove) > 0 {
		err = a.path.UpdateCaptured(add, remove)
	}
	if err != nil {
		a.incomplete = true
		a.reportOnce(key, err)
		return
	}
	delete(a.reported, key)
}

func (a *Agent) ranges() []netip.Prefix { return slices.Concat(a.MeshRanges, a.snapshot.Ranges) }

func inRanges(ranges []netip.Prefix, address netip.Addr) bool {
	return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(address) })
}

func (a *Agent) captureAll() error {
	ranges := a.ranges()
	prefixes := slices.Clone(ranges)
	a.outside = map[netip.Addr]struct{}{}
	for address := range a.snapshot.Addresses() {
		if !inRanges(ranges, address) {
			a.outside[address] = struct{}{}
			prefixes = append(prefixes, netip.PrefixFrom(address, address.BitLen()))
		}
	}
	return a.path.SetCaptured(prefixes)
}

// outsideChanges keeps the known addresses that no range holds, and returns which came and went.
func (a *Agent) outsideChanges(c *source.Changes) (add, remove []netip.Prefix) {
	ranges := a.ranges()
	for address := range c.Addresses {
		single := netip.PrefixFrom(address, address.BitLen())
		_, was := a.outside[address]
		switch is := !inRanges(ranges, address) && a.snapshot.Known(address); {
		case is && !was:
			a.outside[address] = struct{}{}
			add = append(add, single)
		case was && !is:
			delete(a.outside, address)
			remove = append(remove, single)
		}
	}
	return add, remove
}

// wantedModes is what the policies say. Where one of them could not be read, nothing becomes looser than
// it was.
func (a *Agent) wantedModes(w *workload, was policy.Modes) policy.Modes {
	w.decision = a.policies.Effective(policyWorkload(w.pod))
	modes := w.decision.Modes()
	if a.snapshot.PolicyUnreadable(w.pod.Namespace, a.RootNamespace) {
		return policy.Tighter(was, modes)
	}
	return modes
}

// firstModes is for a pod that this process has not seen: what a predecessor enforced counts as what was,
// and a pod that nobody has seen starts STRICT while a policy cannot be read.
func (a *Agent) firstModes(w *workload) (policy.Modes, error) {
	was, found, err := a.path.Policy(w.id)
	if err != nil {
		return policy.Modes{}, fmt.Errorf("policy in force: %w", err)
	}
	if !found {
		was = policy.Modes{Default: policy.Strict}
	}
	return a.wantedModes(w, was), nil
}

// applyModes changes a workload's modes in the order in which nothing opens early: what becomes stricter in
// the kernel, then the tunnel, then what becomes looser, then the connections that became illegal. It reports
// whether the kernel enforces other modes now.
func (a *Agent) applyModes(w *workload) (written bool) {
	was, decided := w.modes, w.decision
	modes := a.wantedModes(w, was)
	if modes.Equal(was) {
		if !sameDecision(decided, w.decision) {
			a.announceUpdate(w)
			a.logPolicy(w)
		}
		return false
	}
	if err := a.path.SetPolicy(w.id, policy.Tighter(was, modes)); err != nil {
		a.policyFailed(w, err)
		return false
	}
	w.setModes(modes)
	a.announceUpdate(w)
	if err := a.path.SetPolicy(w.id, modes); err != nil {
		a.policyFailed(w, err)
		return false
	}
	delete(a.reported, "policy of "+w.pod.Ref())
	a.logPolicy(w)
	a.closePlaintext(w)
	return true
}

// policyFailed takes over what the kernel enforces now, which is never looser than what was wanted, so that the
// next snapshot tries again.
func (a *Agent) policyFailed(w *workload, err error) {
	a.incomplete = true
	a.reportOnce("policy of "+w.pod.Ref(), err)
	modes, found, err := a.path.Policy(w.id)
	if err != nil || !found {
		modes = policy.Modes{Default: policy.Strict}
	}
	w.setModes(modes)
	a.announceUpdate(w)
	a.closePlaintext(w)
}

func sameDecision(a, b policy.Decision) bool {
	return a.Mode == b.Mode && a.Policy == b.Policy && maps.Equal(a.Ports, b.Ports)
}

func (a *Agent) logPolicy(w *workload) {
	a.log.Info("policy applied", "workload", w.pod.Ref(), "port", "default",
		"mode", w.modes.Default.String(), "policy", w.decision.Policy.String())
	for port, mode := range w.modes.Ports {
		a.log.Info("policy applied", "workload", w.pod.Ref(), "port", port,
			"mode", mode.String(), "policy", w.policyFor(port))
	}
}

// closePlaintext ends the plaintext connections of STRICT ports, now and in the sweeps.
func (a *Agent) closePlaintext(w *workload) {
	now := time.Now()
	for _, d := range sweepDelays {
		a.sweeps = append(a.sweeps, sweep{now.Add(d), w.id})
	}
	a.closeNow(w)
}

// closeNow runs beside the loop: a pod with many connections must not hold up the policies of others.
func (a *Agent) closeNow(w *workload) {
	modes, ref := w.modes, w.pod.Ref()
	if !anyStrict(modes) {
		return
	}
	// The workload may close its own meanwhile, and the number then be that of another pod's namespace.
	netns, err := w.netns.Duplicate()
	if err != nil {
		a.log.Error("open plaintext connections not closed", "workload", ref, "error", err)
		return
	}
	a.closing.Go(func() {
		defer netns.Close()
		a.closers <- struct{}{}
		defer func() { <-a.closers }()
		// A port may have been loosened since: what was opened then is there by right.
		strict := func(port uint16) bool {
			return modes.ForPort(port) == policy.Strict && w.latest.Load().ForPort(port) == policy.Strict
		}
		closed, err := a.path.ClosePlaintext(netns, w.id, strict)
		if err != nil && !errors.Is(err, os.ErrClosed) {
			a.log.Error("open plaintext connections not closed", "workload", ref, "error", err)
		}
		if closed > 0 {
			a.log.Info("plaintext connections closed: workload is STRICT", "workload", ref, "closed", closed)
		}
	})
}

func anyStrict(m policy.Modes) bool {
	return m.Default == policy.Strict || slices.Contains(slices.Collect(maps.Values(m.Ports)), policy.Strict)
}

func (a *Agent) runSweeps(now time.Time) {
	due := a.sweeps
	a.sweeps = nil
	for _, s := range due {
		w := a.workloads[s.id]
		switch {
		case w == nil:
		case now.Before(s.at):
			a.sweeps = append(a.sweeps, s)
		default:
			a.closeNow(w)
		}
	}
}

func policyWorkload(p *source.Pod) policy.Workload {
	return policy.Workload{Namespace: p.Namespace, Name: p.Name, Labels: p.Labels}
}
