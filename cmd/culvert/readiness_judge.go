package main

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/observe"
	"github.com/culvert-mesh/culvert/policy"
)

// readinessVerdict answers the question whether STRICT is safe, or whether a proposed policy is.
type readinessVerdict string

const (
	verdictReady    readinessVerdict = "READY"
	verdictNotReady readinessVerdict = "NOT READY"
	verdictUnknown  readinessVerdict = "UNKNOWN"
)

// worse is the verdict of two things together.
func worse(a, b readinessVerdict) readinessVerdict {
	for _, v := range []readinessVerdict{verdictNotReady, verdictUnknown} {
		if a == v || b == v {
			return v
		}
	}
	return verdictReady
}

// readinessReport is the answer. Fields are only ever added.
type readinessReport struct {
	Verdict     readinessVerdict  `json:"verdict"`
	Time        time.Time         `json:"time"`
	Window      time.Duration     `json:"windowNanoseconds"`
	Proposed    []string          `json:"proposedPolicies,omitempty"` // that were replayed
	Workloads   []judgedWorkload  `json:"workloads"`
	NotEnrolled []nodeNotEnrolled `json:"notEnrolled,omitempty"`
	// ProbesExcluded are connections of kubelets that count for nothing, since the programs were loaded.
	ProbesExcluded uint64      `json:"probesExcluded"`
	SilentNodes    []nodeError `json:"silentNodes,omitempty"`
	Notes          []string    `json:"notes,omitempty"`
}

type nodeNotEnrolled struct {
	Node string `json:"node"`
	admin.NotEnrolled
}

type judgedWorkload struct {
	observe.Workload
	Pods  []string  `json:"pods"`           // enrolled now
	Since time.Time `json:"since"`          // when it was first watched
	Blind time.Time `json:"blind,omitzero"` // until when a pod of it ran that nobody watched
	Nodes []string  `json:"nodes"`          // that have seen it
	// Unheard are nodes that have pods of it, or had some in the window, and told nothing.
	Unheard []string     `json:"unheard,omitempty"`
	Ports   []judgedPort `json:"ports"`

	elsewhere map[string]time.Time
	dropped   time.Time // the latest of the nodes that have seen it
	forgotten string    // node that does not remember all of it
}

type judgedPort struct {
	Port     uint16               `json:"port"` // 0: all ports, none of which is declared or was used
	Mode     policy.Mode          `json:"mode"`
	Policy   string               `json:"policy"`
	Proposed *policy.PortDecision `json:"proposed,omitempty"`
	Verdict  readinessVerdict     `json:"verdict"`
	Why      string               `json:"why,omitempty"`
	MTLS     uint64               `json:"mtls"`            // connections that mTLS protects, or that stay within the node
	Breaks   []admin.ObservedPeer `json:"breaks"`          // peers without mTLS that would be refused
	Peers    []admin.ObservedPeer `json:"peers,omitempty"` // all that were seen
}

// judge merges what the nodes have seen.
type judge struct {
	window   time.Duration
	asked    time.Time
	now      time.Time
	silent   []nodeError
	answers  []*admin.Readiness
	nodes    map[netip.Addr]string // by address
	root     string
	proposed []policy.PeerAuthentication
	notes    []string
}

// newJudge is for answers that came since they were asked for.
func newJudge(answers []*admin.Readiness, silent []nodeError, window time.Duration, asked time.Time) *judge {
	j := &judge{window: window, silent: silent, answers: answers, nodes: map[netip.Addr]string{}, asked: asked, now: time.Now()}
	for _, a := range answers {
		j.root = cmp.Or(j.root, a.RootNamespace)
		for _, address := range a.NodeAddresses {
			j.nodes[address] = a.Node
		}
		j.align(a)
	}
	j.missing()
	return j
}

// propose has the traffic replayed against these policies. namespace is the one that is looked at, if not all are.
func (j *judge) propose(policies []policy.PeerAuthentication, namespace string) {
	j.proposed = policies
	for i := range policies {
		if n := policies[i].Namespace; namespace != "" && n != namespace && n != cmp.Or(j.root, policy.DefaultRootNamespace) {
			j.notes = append(j.notes, fmt.Sprintf("PeerAuthentication %s is of another namespace than %s: use --all to see what it does", policies[i].Ref(), namespace))
		}
	}
}

func (j *judge) report() (*readinessReport, error) {
	inForce, after, err := j.sets()
	if err != nil {
		return nil, err
	}
	r := &readinessReport{Verdict: verdictReady, Time: j.now, Window: j.window, SilentNodes: j.silent, Workloads: []judgedWorkload{}}
	for i := range j.proposed {
		r.Proposed = append(r.Proposed, j.proposed[i].Ref().String())
	}
	for _, a := range j.answers {
		r.ProbesExcluded += a.ProbesExcluded
		for _, n := range a.NotEnrolled {
			r.NotEnrolled = append(r.NotEnrolled, nodeNotEnrolled{a.Node, n})
			if n.Wanted {
				r.Verdict = worse(r.Verdict, verdictUnknown)
			}
		}
		for _, n := range a.UnreadablePolicies {
			r.Verdict = worse(r.Verdict, verdictUnknown)
			j.notes = append(j.notes, fmt.Sprintf("node %s: a PeerAuthentication of namespace %q cannot be read: modes may be others", a.Node, n))
		}
	}
	for _, w := range j.merged() {
		doubt := j.doubt(w)
		for i := range w.Ports {
			j.judgePort(&w.Workload, doubt, &w.Ports[i], inForce, after)
			r.Verdict = worse(r.Verdict, w.Ports[i].Verdict)
		}
		r.Workloads = append(r.Workloads, *w)
	}
	if len(r.Workloads) == 0 || len(j.silent) > 0 {
		r.Verdict = worse(r.Verdict, verdictUnknown)
	}
	if len(r.Workloads) == 0 {
		j.notes = append(j.notes, "no workload is enrolled there, or was within the window: nothing is known")
	}
	slices.Sort(j.notes)
	r.Notes = slices.Compact(j.notes)
	return r, nil
}

// sets are the policies in force, and with those that are proposed: nil when none are.
func (j *judge) sets() (inForce, after *policy.Set, err error) {
	byNamespace := map[string]map[string]policy.PeerAuthentication{}
	add := func(p policy.PeerAuthentication) {
		if byNamespace[p.Namespace] == nil {
			byNamespace[p.Namespace] = map[string]policy.PeerAuthentication{}
		}
		byNamespace[p.Namespace][p.Name] = p
	}
	for _, a := range j.answers {
		for i := range a.Policies {
			p, err := a.Policies[i].Parse()
			if err != nil {
				return nil, nil, fmt.Errorf("agent of node %s: PeerAuthentication %s/%s: %w", a.Node, p.Namespace, p.Name, err)
			}
			add(p)
		}
	}
	var all []policy.PeerAuthentication
	for _, some := range byNamespace {
		all = slices.AppendSeq(all, maps.Values(some))
	}
	inForce = policy.NewSet(j.root, all)
	if j.proposed == nil {
		return inForce, nil, nil
	}
	for _, p := range j.proposed {
		// Applied, it takes the place of the one of its name, and keeps its age.
		p.Created = byNamespace[p.Namespace][p.Name].Created
		add(p)
	}
	changed := map[string][]policy.PeerAuthentication{}
	for _, p := range j.proposed {
		changed[p.Namespace] = slices.Collect(maps.Values(byNamespace[p.Namespace]))
	}
	return inForce, inForce.With(changed), nil
}

// merged are the workloads of all nodes.
func (j *judge) merged() []*judgedWorkload {
	all := map[string]*judgedWorkload{}
	for _, a := range j.answers {
		for i := range a.Workloads {
			w := &a.Workloads[i]
			key := w.Key()
			m := all[key]
			if m == nil {
				m = &judgedWorkload{Workload: w.Workload, Since: w.Since, elsewhere: map[string]time.Time{}}
				all[key] = m
			}
			m.Pods = append(m.Pods, w.Pods...)
			m.Nodes = append(m.Nodes, a.Node)
			j.recall(m, a, w)
			if w.Since.Before(m.Since) {
				m.Since = w.Since
			}
			if w.Blind.After(m.Blind) {
				m.Blind = w.Blind
			}
			for _, port := range w.Ports {
				j.mergePort(m, port)
			}
		}
	}
	var kept []*judgedWorkload
	for key, w := range all {
		slices.Sort(w.Pods)
		slices.Sort(w.Nodes)
		w.Unheard, w.forgotten = j.unheard(w), j.forgetful(key, w)
		if len(w.Pods) == 0 && len(w.Unheard) == 0 && !slices.ContainsFunc(w.Ports, func(p judgedPort) bool { return len(p.Peers) > 0 }) {
			continue // gone, and nobody came
		}
		if len(w.Ports) == 0 {
			w.Ports = []judgedPort{{}}
		}
		slices.SortFunc(w.Ports, func(a, b judgedPort) int { return cmp.Compare(a.Port, b.Port) })
		kept = append(kept, w)
	}
	slices.SortFunc(kept, func(a, b *judgedWorkload) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Key(), b.Key()))
	})
	return kept
}

func (j *judge) mergePort(w *judgedWorkload, seen admin.ObservedPort) {
	i := slices.IndexFunc(w.Ports, func(p judgedPort) bool { return p.Port == seen.Port })
	if i < 0 {
		i = len(w.Ports)
		w.Ports = append(w.Ports, judgedPort{Port: seen.Port})
	}
	port := &w.Ports[i]
	for _, p := range seen.Peers {
		if node := j.nodes[p.Address]; node != "" && p.Kind != observe.PeerPod {
			p.Kind, p.Name = observe.PeerNode, node
		}
		k := slices.IndexFunc(port.Peers, func(o admin.ObservedPeer) bool { return o.Carried == p.Carried && o.Key() == p.Key() })
		if k < 0 {
			port.Peers = append(port.Peers, p)
			continue
		}
		o := &port.Peers[k]
		count, firstSeen := o.Count+p.Count, o.First
		if p.First.Before(firstSeen) {
			firstSeen = p.First
		}
		if p.Last.After(o.Last) {
			*o = p
		}
		o.Count, o.First = count, firstSeen
	}
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func compacted(names []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(names)))
}
