package agent

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/agent/enroll"
	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/svidcheck"
	"github.com/culvert-mesh/culvert/agent/nodepage"
	"github.com/culvert-mesh/culvert/agent/observe"
	"github.com/culvert-mesh/culvert/agent/source"
)

const (
	maxPageRefusals = 500
	maxPageProblems = 100
)

// Page implements nodepage.Source.
func (i inspector) Page(ctx context.Context) (nodepage.Page, error) {
	p := nodepage.Page{Node: i.agent.Node, Version: i.agent.Version, Time: time.Now()}
	p.Agent.Started = i.agent.started
	var (
		snapshot *source.Snapshot
		enrolled map[string]nodepage.Workload
		failed   map[string]string
	)
	err := i.inspect(ctx, func(a *Agent) error {
		snapshot, failed = a.snapshot, maps.Clone(a.unenrollable)
		p.Agent.Synced = snapshot != nil
		for s := range a.sessions {
			p.Tunnels = append(p.Tunnels, a.tunnelOnPage(s))
		}
		enrolled = make(map[string]nodepage.Workload, len(a.byPod))
		for ref, w := range a.byPod {
			enrolled[ref] = enrolledOnPage(w)
		}
		return nil
	})
	if err != nil {
		return p, err
	}
	if snapshot != nil {
		p.Workloads = i.workloadsOnPage(snapshot, enrolled, failed)
		for _, problem := range snapshot.Problems[:min(len(snapshot.Problems), maxPageProblems)] {
			p.Agent.Problems = append(p.Agent.Problems, problem.Object+": "+problem.Err.Error())
		}
	}
	slices.SortFunc(p.Tunnels, func(a, b nodepage.Tunnel) int { return a.Connected.Compare(b.Connected) })
	if s, ok := i.agent.Source.(staleness); ok {
		p.Agent.Stale = s.Stale()
	}
	p.Certificates = certificatesOnPage(i.agent.keeper)
	p.Edges = edgesOnPage(i.agent.observer.memory.Edges(time.Time{}))
	p.Refusals = refusalsOnPage(i.agent.observer.memory)
	return p, nil
}

// tunnelOnPage runs on the loop.
func (a *Agent) tunnelOnPage(s *session) nodepage.Tunnel {
	t := nodepage.Tunnel{Version: s.version(), Connected: s.since, FlowsLost: s.lost.Load()}
	if skewOf(a.Version, t.Version) != "" {
		t.Problem = "not the agent’s version"
	}
	return t
}

// enrolledOnPage runs on the loop.
func enrolledOnPage(w *workload) nodepage.Workload {
	p := nodepage.Workload{Namespace: w.pod.Namespace, Pod: w.pod.Name, Enrolled: true, Identity: w.identity.String()}
	p.Ports = append(p.Ports, nodepage.Port{Mode: w.modes.Default.String(), Policy: w.decision.Policy.String()})
	for _, port := range slices.Sorted(maps.Keys(w.modes.Ports)) {
		p.Ports = append(p.Ports, nodepage.Port{Port: port, Mode: w.modes.Ports[port].String(), Policy: w.policyFor(port)})
	}
	return p
}

func (i inspector) workloadsOnPage(s *source.Snapshot, enrolled map[string]nodepage.Workload, failed map[string]string) []nodepage.Workload {
	var all []nodepage.Workload
	for ref, pod := range s.Local() {
		w, ok := enrolled[ref]
		if !ok {
			w = nodepage.Workload{Namespace: pod.Namespace, Pod: pod.Name, Failed: failed[ref] != "", Why: failed[ref]}
			if !w.Failed {
				w.Why = enroll.Decide(s.Namespace(pod.Namespace), pod, i.agent.Enroll).Reason
			}
		}
		all = append(all, w)
	}
	slices.SortFunc(all, func(a, b nodepage.Workload) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod))
	})
	return all
}

func certificatesOnPage(k *identity.Keeper) []nodepage.Certificate {
	var all []nodepage.Certificate
	for _, s := range k.Status() {
		c := nodepage.Certificate{Identity: s.ID.String(), Source: k.Issuer(), Workloads: len(s.Workloads)}
		if s.Err != nil {
			c.Error = s.Err.Error()
		}
		if len(s.Chain) > 0 {
			if chain, err := svidcheck.Parse(s.Chain[:1]); err == nil {
				c.NotBefore, c.NotAfter = chain[0].NotBefore, chain[0].NotAfter
				if s.Obtained.After(c.NotBefore) {
					c.NotBefore = s.Obtained // CAs begin a life some minutes early, for clocks that are behind
				}
			}
		}
		all = append(all, c)
	}
	return all
}

// edgesOnPage makes one of the two that a pair of this node has: each end has seen the same connections.
func edgesOnPage(edges []observe.Edge) []nodepage.Edge {
	type key struct {
		from, to string
		port     uint16
	}
	merged := map[key]*nodepage.Edge{}
	for _, e := range edges {
		k := key{e.Source, e.Destination, e.Port}
		m := merged[k]
		if m == nil {
			m = &nodepage.Edge{From: e.Source, To: e.Destination, Port: e.Port}
			merged[k] = m
		}
		for carried, into := range map[observe.Carried]*uint64{observe.MTLS: &m.MTLS, observe.SameNode: &m.SameNode,
			observe.Plaintext: &m.Plaintext, observe.Refused: &m.Refused, observe.Failed: &m.Failed} {
			*into = max(*into, e.Carried[carried].Count)
		}
		if e.Last.After(m.Last) {
			m.Last = e.Last
		}
	}
	var all []nodepage.Edge
	for _, e := range merged {
		all = append(all, *e)
	}
	return all
}

func refusalsOnPage(memory *observe.Recorder) []nodepage.Refusal {
	events, _, _ := memory.Events(0)
	var all []nodepage.Refusal
	for _, e := range slices.Backward(events) {
		if e.Carried != observe.Refused {
			continue
		}
		r := nodepage.Refusal{Time: e.Time, From: nameOnPage(e.Source), FromIdentity: e.Source.Identity, To: nameOnPage(e.Destination),
			Port: e.Destination.Port, Reason: e.Reason, Policy: e.Policy}
		if e.Count > 1 {
			r.Suppressed = e.Count - 1
		}
		if all = append(all, r); len(all) == maxPageRefusals {
			break
		}
	}
	return all
}

func nameOnPage(e observe.End) string {
	switch {
	case e.Workload != "":
		return e.Workload
	case e.Node != "":
		return "node " + e.Node
	}
	return strings.TrimPrefix(e.Address.String(), "invalid IP")
}
