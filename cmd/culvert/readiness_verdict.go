package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/observe"
	"github.com/culvert-mesh/culvert/policy"
)

// exactEnough is how far a node's clock may be off and be taken as right.
const exactEnough = 2 * time.Second

// align turns the times of a node whose clock is off into those of this machine.
func (j *judge) align(a *admin.Readiness) {
	off := max(a.Time.Sub(j.now), 0)
	if a.Time.Before(j.asked) {
		off = a.Time.Sub(j.asked)
	}
	if a.Time.IsZero() || off.Abs() <= exactEnough {
		return
	}
	j.notes = append(j.notes, fmt.Sprintf("clock of node %s is off by %s: its times are corrected", a.Node, short(off.Abs())))
	shift := func(t *time.Time) {
		if !t.IsZero() {
			*t = t.Add(-off)
		}
	}
	shift(&a.Dropped)
	for i := range a.Workloads {
		w := &a.Workloads[i]
		shift(&w.Since)
		shift(&w.Blind)
		for node, at := range w.Elsewhere {
			shift(&at)
			w.Elsewhere[node] = at
		}
		for k := range w.Ports {
			for n := range w.Ports[k].Peers {
				shift(&w.Ports[k].Peers[n].First)
				shift(&w.Ports[k].Peers[n].Last)
			}
		}
	}
}

// missing adds to the silent nodes those that were not asked, or whose agents do not tell enough.
func (j *judge) missing() {
	known := map[string]bool{}
	for _, n := range j.silent {
		known[n.Node] = true
	}
	add := func(node, why string) {
		if !known[node] {
			known[node] = true
			j.silent = append(j.silent, nodeError{Node: node, Error: why})
		}
	}
	for _, a := range j.answers {
		if a.Form < admin.ReadinessForm {
			add(a.Node, "its agent is older than this command, and does not tell all that matters")
		}
		known[a.Node] = true
	}
	for _, a := range j.answers {
		for _, node := range a.EnrolledOn {
			add(node, "it has enrolled pods, and was not asked: no agent runs there, or --local or --node kept it out")
		}
	}
	slices.SortFunc(j.silent, func(a, b nodeError) int { return cmp.Compare(a.Node, b.Node) })
}

// recall adds what a node knows of a workload.
func (j *judge) recall(m *judgedWorkload, a *admin.Readiness, w *admin.Observed) {
	for node, at := range w.Elsewhere {
		if was, known := m.elsewhere[node]; !known || at.Before(was) {
			m.elsewhere[node] = at
		}
	}
	if a.Dropped.After(m.dropped) {
		m.dropped = a.Dropped
	}
}

// unheard are the nodes that have, or had, pods of a workload and told nothing.
func (j *judge) unheard(w *judgedWorkload) []string {
	told := map[string]bool{}
	for _, a := range j.answers {
		told[a.Node] = true
	}
	return slices.DeleteFunc(slices.Sorted(maps.Keys(w.elsewhere)), func(n string) bool { return told[n] })
}

// forgetful is a node that others know to have had pods of the workload before it remembers any: it was started anew.
func (j *judge) forgetful(key string, w *judgedWorkload) string {
	const exact = 2 * time.Minute // nodes look at each other's pods once a minute
	for _, a := range j.answers {
		at, known := w.elsewhere[a.Node]
		if !known {
			continue
		}
		i := slices.IndexFunc(a.Workloads, func(o admin.Observed) bool { return o.Key() == key })
		if i < 0 || a.Workloads[i].Since.Sub(at) > exact && a.Workloads[i].Since.After(j.now.Add(-j.window)) {
			return a.Node
		}
	}
	return ""
}

// doubt says why somebody may have come to a workload unseen, or "".
func (j *judge) doubt(w *judgedWorkload) string {
	begin := j.now.Add(-j.window)
	switch {
	case len(w.Unheard) > 0:
		return fmt.Sprintf("its pods on node %s are, or were, not watched by those who answered", strings.Join(w.Unheard, ", "))
	case len(j.silent) > 0:
		return plural(len(j.silent), "node") + " did not answer"
	case w.forgotten != "":
		return fmt.Sprintf("node %s was started anew, and what it saw before is not known", w.forgotten)
	case w.dropped.After(begin):
		return "plaintext peers are missing until " + w.dropped.Local().Format(time.DateTime) + ": more than are remembered"
	case w.Blind.After(begin) && w.Blind.After(w.Since):
		return "a pod of it ran unwatched until " + w.Blind.Local().Format(time.DateTime)
	case w.Since.After(begin):
		return fmt.Sprintf("watched for %s only, since %s", short(max(j.now.Sub(w.Since), 0)), w.Since.Local().Format(time.DateTime))
	}
	return ""
}

// passing says which policy selects by labels that a workload is not remembered by, or "".
func (j *judge) passing(w *observe.Workload) string {
	names := map[string]bool{}
	note := func(namespace, name string, selector map[string]string) {
		labels := observe.Passing(selector)
		if namespace != w.Namespace || len(labels) == 0 {
			return
		}
		for name, value := range observe.Lasting(selector) {
			if w.Labels[name] != value {
				return
			}
		}
		names[fmt.Sprintf("%s/%s (%s)", namespace, name, strings.Join(labels, ", "))] = true
	}
	for _, a := range j.answers {
		for i := range a.Policies {
			note(a.Policies[i].Namespace, a.Policies[i].Name, a.Policies[i].Selector)
		}
	}
	for i := range j.proposed {
		note(j.proposed[i].Namespace, j.proposed[i].Name, j.proposed[i].Selector)
	}
	if len(names) == 0 {
		return ""
	}
	return "PeerAuthentication " + strings.Join(slices.Sorted(maps.Keys(names)), ", ") + " selects by labels that end with a pod"
}

// judgePort says what STRICT, or the proposed policies, would do to a port.
func (j *judge) judgePort(w *observe.Workload, doubt string, p *judgedPort, inForce, after *policy.Set) {
	subject := policy.Workload{Namespace: w.Namespace, Name: w.Pod, Labels: w.Labels}
	now := inForce.Effective(subject).ForPort(p.Port)
	p.Mode, p.Policy = now.Mode, now.Policy.String()
	next := policy.Strict
	if after != nil {
		d := after.Effective(subject).ForPort(p.Port)
		p.Proposed, next = &d, d.Mode
	}
	p.Breaks = []admin.ObservedPeer{}
	slices.SortFunc(p.Peers, func(a, b admin.ObservedPeer) int {
		return cmp.Or(b.Last.Compare(a.Last), cmp.Compare(a.Key(), b.Key()))
	})
	for _, peer := range p.Peers {
		switch {
		case peer.Carried == observe.MTLS || peer.Carried == observe.SameNode:
			p.MTLS += peer.Count
		case next == policy.Strict && now.Mode != policy.Strict && withoutMTLS(&peer):
			p.Breaks = append(p.Breaks, peer)
		}
	}
	if passing := j.passing(w); passing != "" && len(p.Breaks) == 0 {
		p.Verdict, p.Why = verdictUnknown, passing
		return
	}
	p.Verdict, p.Why = p.verdict(now.Mode, next, doubt)
}

// withoutMTLS reports whether the peer came in plaintext: with success, or to a port that was STRICT then.
func withoutMTLS(p *admin.ObservedPeer) bool {
	return p.Carried == observe.Plaintext || p.Carried == observe.Refused && p.Identity == ""
}

func (p *judgedPort) verdict(now, next policy.Mode, doubt string) (readinessVerdict, string) {
	switch {
	case next == policy.Disable && now != policy.Disable && p.MTLS > 0:
		return verdictReady, fmt.Sprintf("nothing is refused, but %d connections would lose mTLS", p.MTLS)
	case next != policy.Strict:
		return verdictReady, "stays open to plaintext"
	case now == policy.Strict:
		return verdictReady, "is STRICT already"
	case len(p.Breaks) > 0:
		return verdictNotReady, plural(len(p.Breaks), "plaintext peer")
	case doubt != "":
		return verdictUnknown, doubt
	case p.MTLS == 0:
		return verdictReady, "nobody came"
	}
	return verdictReady, ""
}
