package agent

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/datapath"
	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/policy"
)

// maxReported bounds each list of a report.
const maxReported = 4096

// Bugreport implements admin.Reporter. What cannot be found out is an error in it.
func (o *observer) Bugreport(ctx context.Context) (*admin.Bugreport, error) {
	r := &admin.Bugreport{Node: o.agent.Node, Edges: first(o.memory.Edges(time.Time{})), LostEvents: o.memory.LostEvents()}
	failed := func(what string, err error) {
		if err != nil {
			r.Errors = append(r.Errors, what+": "+err.Error())
		}
	}
	failed("agent", o.reportState(ctx, r))
	if o.agent.path == nil {
		failed("kernel", errors.New("no programs are loaded"))
		return r, nil
	}
	counters, err := o.agent.path.Counters()
	failed("counters", err)
	r.Counters = counters
	fill, err := o.agent.path.Fill()
	failed("maps", err)
	for _, m := range fill {
		r.Maps = append(r.Maps, admin.MapFill(m))
	}
	for _, f := range datapath.Probe() {
		feature := admin.ReportFeature{Name: f.Name, Needed: f.Needed, Optional: f.Optional}
		if f.Err != nil {
			feature.Missing = f.Err.Error()
		}
		r.Features = append(r.Features, feature)
	}
	return r, nil
}

// reportState asks the loop. One that stands still may answer after nobody waits any more, and so has a report of its own.
func (o *observer) reportState(ctx context.Context, r *admin.Bugreport) error {
	var snapshot *source.Snapshot
	state := &admin.Bugreport{}
	err := inspector{agent: o.agent}.inspect(ctx, func(a *Agent) error {
		for _, w := range a.workloads {
			state.Workloads = append(state.Workloads, reportWorkload(w))
		}
		state.Tunnels, state.Snapshot.Generation, state.Snapshot.NotEnrolled = len(a.sessions), a.generation, maps.Clone(a.unenrollable)
		if snapshot = a.snapshot; snapshot != nil {
			state.Snapshot.Ranges = a.ranges()
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.Workloads, r.Tunnels, r.Snapshot = state.Workloads, state.Tunnels, state.Snapshot
	slices.SortFunc(r.Workloads, func(a, b admin.ReportWorkload) int { return cmp.Compare(a.Pod, b.Pod) })
	if snapshot == nil {
		return errNoSnapshot
	}
	fillSnapshot(r, snapshot)
	return nil
}

func reportWorkload(w *workload) admin.ReportWorkload {
	r := admin.ReportWorkload{Pod: w.pod.Ref(), Cookie: w.id, Identity: w.identity.String(), Addresses: w.pod.Addresses, Sandbox: w.container,
		Mode: w.modes.ForPort(0).String(), Policy: w.decision.Policy.String(), Listeners: len(w.listeners)}
	for port := range w.modes.Ports {
		if r.Ports == nil {
			r.Ports = map[uint16]string{}
		}
		r.Ports[port] = w.modes.ForPort(port).String() + " by " + w.policyFor(port)
	}
	return r
}

func fillSnapshot(r *admin.Bugreport, s *source.Snapshot) {
	r.Snapshot.Pods, r.Snapshot.Incomplete, r.Snapshot.UnreadablePolicies = s.Pods(), s.Incomplete, s.UnreadablePolicies
	for _, p := range first(s.Problems) {
		r.Snapshot.Problems = append(r.Snapshot.Problems, p.Object+": "+p.Err.Error())
	}
	policies := s.AllPolicies()
	slices.SortFunc(policies, func(a, b policy.PeerAuthentication) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, p := range first(policies) {
		r.Policies = append(r.Policies, admin.NewPolicy(&p))
	}
	rules := s.AllRules()
	slices.SortFunc(rules, func(a, b policy.DestinationRule) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, x := range first(rules) {
		rule := admin.ReportRule{Namespace: x.Namespace, Name: x.Name, Host: x.Host, Created: x.Created}
		if x.TLS != nil {
			rule.TLS = x.TLS.Mode.String()
		}
		r.Rules = append(r.Rules, rule)
	}
}

// first bounds a list.
func first[T any](all []T) []T { return all[:min(len(all), maxReported)] }
