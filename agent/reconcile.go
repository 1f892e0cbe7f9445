package agent

import (
	"errors"
	"fmt"
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
	if len(s.Namespaces) == 0 && len(s.Pods) == 0 {
		// More likely a volume that is not mounted than the wish to open every pod.
		a.reportProblems(append(slices.Clip(s.Problems), source.Problem{Object: "configuration", Err: errEmpty}))
		return
	}
	a.snapshot = s
	a.policies = policy.NewSet(a.RootNamespace, s.Policies)
	a.rules = policy.NewRuleSet(a.RootNamespace, a.ClusterDomain, s.Rules)
	a.reportProblems(s.Problems)
	a.capture()
	wanted := a.wantedPods()
	for ref, w := range a.byPod {
		// New policies go with the new labels: with the old ones they might open what neither opens.
		if pod := wanted[ref]; pod != nil && samePlace(pod, w.pod) {
			w.pod = pod
			a.applyModes(w)
		}
	}
	a.enrollPods(wanted)
	a.updateRoutes()
	a.generation++
	a.log.Info("snapshot applied", "generation", a.generation, "pods", len(s.Pods), "policies", len(s.Policies),
		"enrolled_here", len(a.workloads), "problems", len(s.Problems), "took", time.Since(begin).String())
}

func (a *Agent) capture() {
	const key = "captured addresses"
	if err := a.path.SetCaptured(a.captured()); err != nil {
		a.incomplete = true
		a.reportOnce(key, err)
		return
	}
	delete(a.reported, key)
}

// captured is what connections are captured for: the mesh's ranges, and what is known outside of them.
func (a *Agent) captured() []netip.Prefix {
	prefixes := slices.Clone(a.MeshRanges)
	add := func(addresses []netip.Addr) {
		for _, address := range addresses {
			inRange := slices.ContainsFunc(a.MeshRanges, func(p netip.Prefix) bool { return p.Contains(address) })
			if !inRange {
				prefixes = append(prefixes, netip.PrefixFrom(address, address.BitLen()))
			}
		}
	}
	for i := range a.snapshot.Pods {
		if !a.snapshot.Pods[i].HostNetwork {
			add(a.snapshot.Pods[i].Addresses)
		}
	}
	for i := range a.snapshot.Services {
		add(a.snapshot.Services[i].Addresses)
	}
	return prefixes
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
// the kernel, then the tunnel, then what becomes looser, then the connections that became illegal.
func (a *Agent) applyModes(w *workload) {
	was, decided := w.modes, w.decision
	modes := a.wantedModes(w, was)
	if modes.Equal(was) {
		if !sameDecision(decided, w.decision) {
			a.announceUpdate(w)
			a.logPolicy(w)
		}
		return
	}
	if err := a.path.SetPolicy(w.id, policy.Tighter(was, modes)); err != nil {
		a.policyFailed(w, err)
		return
	}
	w.modes = modes
	a.announceUpdate(w)
	if err := a.path.SetPolicy(w.id, modes); err != nil {
		a.policyFailed(w, err)
		return
	}
	delete(a.reported, "policy of "+w.pod.Ref())
	a.logPolicy(w)
	a.closePlaintext(w)
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
	w.modes = modes
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
		strict := func(port uint16) bool { return modes.ForPort(port) == policy.Strict }
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
