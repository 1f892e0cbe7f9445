package nodepage

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// What is shown at most; the rest is counted.
const (
	maxWorkloads    = 500
	maxCertificates = 500
	maxConnections  = 100
	maxRefusals     = 100
	maxProblems     = 20
	maxPorts        = 32 // of a workload
	maxTunnels      = 16
)

// shown is a Page, filtered and cut to what fits on a screen, and what is derived from it.
type shown struct {
	Page
	Filter string
	Totals totals
	Graph  graph
	// certificates are all of the node, by identity.
	certificates map[string]Certificate
}

// totals are those that match the filter, and pods and pairs that deserve a look.
type totals struct {
	Workloads, Enrolled, Failed int
	Certificates, Worrying      int
	Edges, Plaintext, Refused   int
	Refusals, Problems          int
}

func show(p *Page, filter string) shown {
	s := shown{Page: *p, Filter: filter, certificates: make(map[string]Certificate, len(p.Certificates))}
	for i := range p.Certificates {
		s.certificates[p.Certificates[i].Identity] = p.Certificates[i]
	}
	match := matcher(filter)
	s.Workloads = keep(p.Workloads, func(w *Workload) bool {
		return match(w.Namespace+"/"+w.Pod, w.Identity, w.Why) ||
			slices.ContainsFunc(w.Ports, func(p Port) bool { return match(p.Mode, p.Policy) })
	})
	s.Certificates = keep(p.Certificates, func(c *Certificate) bool { return match(c.Identity, c.Source, c.Error) })
	s.Edges = keep(p.Edges, func(e *Edge) bool { return match(e.From, e.To, e.To+":"+strconv.Itoa(int(e.Port))) })
	s.Refusals = keep(p.Refusals, func(r *Refusal) bool { return match(r.From, r.FromIdentity, r.To, r.Reason, r.Policy) })
	s.count()

	slices.SortFunc(s.Edges, worstFirst)
	s.Graph = draw(s.Edges)
	s.Workloads = cut(s.Workloads, maxWorkloads)
	for i := range s.Workloads {
		s.Workloads[i].Ports = cut(s.Workloads[i].Ports, maxPorts)
	}
	s.Certificates = cut(s.Certificates, maxCertificates)
	s.Edges = cut(s.Edges, maxConnections)
	s.Refusals = cut(s.Refusals, maxRefusals)
	s.Agent.Problems, s.Agent.Stale = cut(s.Agent.Problems, maxProblems), cut(s.Agent.Stale, maxProblems)
	s.Tunnels = cut(s.Tunnels, maxTunnels)
	return s
}

func (s *shown) count() {
	t := &s.Totals
	t.Workloads, t.Certificates, t.Edges, t.Refusals = len(s.Workloads), len(s.Certificates), len(s.Edges), len(s.Refusals)
	t.Problems = len(s.Agent.Problems)
	for i := range s.Workloads {
		if s.Workloads[i].Enrolled {
			t.Enrolled++
		}
		if s.Workloads[i].Failed {
			t.Failed++
		}
	}
	for i := range s.Certificates {
		if s.State(s.Certificates[i]).Kind != kindGood {
			t.Worrying++
		}
	}
	for i := range s.Edges {
		if s.Edges[i].Plaintext > 0 {
			t.Plaintext++
		}
		if s.Edges[i].Refused > 0 {
			t.Refused++
		}
	}
}

// PortsCut reports whether the workload may have more ports than are shown.
func (s *shown) PortsCut(w Workload) bool { return len(w.Ports) == maxPorts }

// Certificate returns that of an identity: none or one.
func (s *shown) Certificate(identity string) []Certificate {
	if c, there := s.certificates[identity]; there {
		return []Certificate{c}
	}
	return nil
}

// Marks for people: a word, and a kind that decides its shape and colour.
const (
	kindGood = "good"
	kindWarn = "warn"
	kindBad  = "bad"
)

type mark struct{ Kind, Text string }

// State is how a certificate stands.
func (s *shown) State(c Certificate) mark {
	switch left := c.NotAfter.Sub(s.Time); {
	case c.NotAfter.IsZero():
		return mark{kindBad, "none yet"}
	case left <= 0:
		return mark{kindBad, "expired"}
	case c.Error != "":
		return mark{kindWarn, "renewal fails"}
	case left < c.NotAfter.Sub(c.NotBefore)/4:
		return mark{kindWarn, "renewal is late"} // it is due at half the life
	default:
		return mark{kindGood, "valid"}
	}
}

// matcher returns whether any of the texts contains the filter, in whatever case.
func matcher(filter string) func(...string) bool {
	filter = strings.ToLower(filter)
	return func(texts ...string) bool {
		return filter == "" || slices.ContainsFunc(texts, func(t string) bool { return strings.Contains(strings.ToLower(t), filter) })
	}
}

// keep returns a new slice of those that match.
func keep[T any](all []T, match func(*T) bool) []T {
	kept := []T{}
	for i := range all {
		if match(&all[i]) {
			kept = append(kept, all[i])
		}
	}
	return kept
}

func cut[T any](all []T, most int) []T { return all[:min(len(all), most)] }

func total(e *Edge) uint64 { return e.MTLS + e.SameNode + e.Plaintext + e.Refused + e.Failed }

// worstFirst puts pairs with refusals before those with plaintext, and both before the rest; the busy ones first.
func worstFirst(a, b Edge) int {
	return cmp.Or(
		cmp.Compare(severity(&b), severity(&a)), cmp.Compare(total(&b), total(&a)),
		cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To), cmp.Compare(a.Port, b.Port),
	)
}

func severity(e *Edge) int {
	switch {
	case e.Refused > 0:
		return 2
	case e.Plaintext > 0:
		return 1
	}
	return 0
}

// Summary is one sentence or two, which a screen reader speaks when they change.
func (s *shown) Summary() string {
	t := &s.Totals
	parts := []string{fmt.Sprintf("%d of %s enrolled", t.Enrolled, plural(t.Workloads, "pod"))}
	for _, p := range []struct {
		n    int
		text string
	}{
		{t.Failed, fmt.Sprintf("%d to be enrolled, but failed", t.Failed)},
		{t.Plaintext, plural(t.Plaintext, "pair") + " with plaintext"},
		{t.Refused, plural(t.Refused, "pair") + " with refused connections"},
		{t.Worrying, plural(t.Worrying, "certificate") + " to look at"},
		{t.Problems, plural(t.Problems, "problem") + " of the agent"},
	} {
		if p.n > 0 {
			parts = append(parts, p.text)
		}
	}
	if len(s.Agent.Stale) > 0 {
		parts = append(parts, "the cluster is not followed")
	}
	if len(s.Tunnels) == 0 {
		parts = append(parts, "no tunnel is connected")
	}
	sentence := strings.Join(parts, "; ") + "."
	if s.Filter != "" {
		return "Filtered: " + sentence
	}
	return sentence
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
