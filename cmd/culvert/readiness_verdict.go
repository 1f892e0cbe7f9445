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
		for k := range w.Ports {
			for n := range w.Ports[k].Peers {
				shift(&w.Ports[k].Peers[n].First)
				shift(&w.Ports[k].Peers[n].Last)
			}
		}
	}
}

// unheard are those of the nodes that told nothing.
func (j *judge) unheard(nodes []string) []string {
	told := map[string]bool{}
	for _, a := range j.answers {
		told[a.Node] = true
	}
	return slices.DeleteFunc(compacted(nodes), func(n string) bool { return told[n] })
}

// doubt says why somebody may have come to a workload unseen, or "".
func (j *judge) doubt(w *judgedWorkload, dropped time.Time) string {
	begin := j.now.Add(-j.window)
	switch {
	case len(j.silent) > 0:
		return plural(len(j.silent), "node") + " did not answer"
	case len(w.Unheard) > 0:
		return fmt.Sprintf("its pods on node %s are, or were, not watched by those who answered", strings.Join(w.Unheard, ", "))
	case dropped.After(begin):
		return "more plaintext peers than are remembered until " + dropped.Local().Format(time.DateTime)
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
