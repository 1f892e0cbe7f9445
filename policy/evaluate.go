package policy

import (
	"fmt"
	"maps"
	"slices"
)

// Set is an index of PeerAuthentication policies. It never changes and may be used concurrently.
type Set struct {
	root       string
	mesh       Decision // what holds where no other policy is
	namespaces map[string]*namespacePolicies
}

// namespacePolicies are the policies of one namespace.
type namespacePolicies struct {
	decision Decision // for the workloads that no selector matches
	all      *group   // policies without a selector, or nil
	selected []*group
	// byLabel has each group under one label of its selector, the one that the fewest selectors share: so a
	// workload meets few groups that do not match. Oldest first, so that the first match is the bucket's best.
	byLabel map[label][]*group
}

// group is the policies of one namespace with equal selectors: where one matches, all do, and the
// oldest wins. The decision is known beforehand, since the weaker levels are the same for all workloads.
type group struct {
	selector map[string]string
	policies []*PeerAuthentication // oldest first
	refs     []Ref                 // their names
	decision Decision
}

func (g *group) head() *PeerAuthentication { return g.policies[0] }

func (g *group) level(l Level) LevelDecision {
	return LevelDecision{Level: l, Winner: g.refs[0], Mode: g.head().Mode.or(Unset), Losers: slices.Clip(g.refs[1:])}
}

// NewSet indexes the policies; "" as root is DefaultRootNamespace. The maps inside policies must not
// be changed afterwards. Policies that Validate finds wrong are taken as far as they make sense.
func NewSet(root string, policies []PeerAuthentication) *Set {
	if root == "" {
		root = DefaultRootNamespace
	}
	byNamespace := make(map[string][]PeerAuthentication)
	for i := range policies {
		n := policies[i].Namespace
		byNamespace[n] = append(byNamespace[n], policies[i])
	}
	s := &Set{root: root, mesh: Decision{Mode: Permissive}}
	return s.With(byNamespace)
}

// With is s where the policies of the given namespaces are these instead; an empty list is none. What is said of
// NewSet's policies holds for them. It costs what those namespaces cost, unless the root namespace is among them:
// then all do.
func (s *Set) With(changed map[string][]PeerAuthentication) *Set {
	next := &Set{root: s.root, mesh: s.mesh, namespaces: maps.Clone(s.namespaces)}
	if next.namespaces == nil {
		next.namespaces = make(map[string]*namespacePolicies)
	}
	for name, list := range changed {
		if len(list) == 0 {
			delete(next.namespaces, name)
			continue
		}
		next.namespaces[name] = newNamespacePolicies(pointers(list))
	}
	if _, all := changed[s.root]; all {
		next.mesh = Decision{Mode: Permissive}
		if r := next.namespaces[s.root]; r != nil && r.all != nil {
			next.mesh = next.mesh.override(r.all.head())
		}
		next.decideAll(changed)
		return next
	}
	for name := range changed {
		if n := next.namespaces[name]; n != nil {
			n.decide(next.mesh)
		}
	}
	return next
}

// decideAll decides every namespace anew. Those that are not new are s's predecessor's too, which must not change.
func (s *Set) decideAll(fresh map[string][]PeerAuthentication) {
	for name, n := range s.namespaces {
		if name == s.root {
			continue
		}
		if _, ok := fresh[name]; !ok {
			n = newNamespacePolicies(n.policies())
			s.namespaces[name] = n
		}
		n.decide(s.mesh)
	}
}

func pointers(list []PeerAuthentication) []*PeerAuthentication {
	own := slices.Clone(list)
	all := make([]*PeerAuthentication, len(own))
	for i := range own {
		all[i] = &own[i]
	}
	return all
}

func (n *namespacePolicies) policies() []*PeerAuthentication {
	groups := n.selected
	if n.all != nil {
		groups = append(slices.Clip(groups), n.all)
	}
	return merged(groups)
}

func newNamespacePolicies(policies []*PeerAuthentication) *namespacePolicies {
	slices.SortFunc(policies, olderPolicy)
	n := &namespacePolicies{byLabel: make(map[label][]*group)}
	groups := make(map[string]*group)
	for _, p := range policies {
		key := labelKey(p.Selector)
		g := groups[key]
		if g == nil {
			g = &group{selector: p.Selector}
			groups[key] = g
			if len(p.Selector) == 0 {
				n.all = g
			} else {
				n.selected = append(n.selected, g)
			}
		}
		g.policies = append(g.policies, p)
		g.refs = append(g.refs, p.Ref())
	}
	n.index()
	return n
}

// index fills byLabel. n.selected is oldest first, and so every bucket is.
func (n *namespacePolicies) index() {
	shared := make(map[label]int)
	for _, g := range n.selected {
		for key, value := range g.selector {
			shared[label{key, value}]++
		}
	}
	for _, g := range n.selected {
		var rarest label
		fewest := 0
		for key, value := range g.selector {
			if c := shared[label{key, value}]; fewest == 0 || c < fewest {
				rarest, fewest = label{key, value}, c
			}
		}
		n.byLabel[rarest] = append(n.byLabel[rarest], g)
	}
}

// decide works out the decisions of a namespace, given the mesh's.
func (n *namespacePolicies) decide(mesh Decision) {
	n.decision = mesh
	if n.all != nil {
		n.decision = mesh.override(n.all.head())
	}
	for _, g := range n.selected {
		g.decision = g.withPorts(n.decision.override(g.head()))
	}
}

// override is d as changed by the policy of the next stronger level, its ports apart.
func (d Decision) override(p *PeerAuthentication) Decision {
	if p.Mode == Unset {
		return d
	}
	return Decision{Mode: p.Mode.or(Unset), Policy: p.Ref()}
}

// withPorts adds the ports of the winning workload policy, which is g's head.
func (g *group) withPorts(d Decision) Decision {
	for port, mode := range g.head().Ports {
		if port == 0 { // Validate refuses it, and no connection has it
			continue
		}
		if d.Ports == nil {
			d.Ports = make(map[uint16]PortDecision, len(g.head().Ports))
		}
		d.Ports[port] = PortDecision{d.Mode, d.Policy}
		if mode != Unset {
			d.Ports[port] = PortDecision{mode.or(Unset), g.refs[0]}
		}
	}
	return d
}

// oldestMatch is the group whose head wins the workload level, or nil.
func (n *namespacePolicies) oldestMatch(labels map[string]string) *group {
	var best *group
	for key, value := range labels {
		for _, g := range n.byLabel[label{key, value}] {
			if best != nil && olderPolicy(best.head(), g.head()) < 0 {
				break
			}
			if matches(g.selector, labels) {
				best = g
				break
			}
		}
	}
	return best
}

// allMatches are the groups that match, the winner first.
func (n *namespacePolicies) allMatches(labels map[string]string) []*group {
	var found []*group
	for key, value := range labels {
		for _, g := range n.byLabel[label{key, value}] {
			if matches(g.selector, labels) {
				found = append(found, g)
			}
		}
	}
	slices.SortFunc(found, func(a, b *group) int { return olderPolicy(a.head(), b.head()) })
	return found
}

// Effective decides for a workload. It never fails: what no policy says is PERMISSIVE, by "default".
func (s *Set) Effective(w Workload) Decision {
	n := s.namespaces[w.Namespace]
	if n == nil || w.Namespace == s.root {
		return s.mesh
	}
	if g := n.oldestMatch(w.Labels); g != nil {
		return g.decision
	}
	return n.decision
}

// Explain is Effective with what led to it. It costs more, since it looks for the losers as well.
func (s *Set) Explain(w Workload) Explanation {
	e := Explanation{Decision: s.Effective(w)}
	if root := s.namespaces[s.root]; root != nil {
		if root.all != nil {
			e.Levels = append(e.Levels, root.all.level(LevelMesh))
		}
		e.Ignored = names(merged(root.allMatches(w.Labels)))
	}
	n := s.namespaces[w.Namespace]
	if n == nil || w.Namespace == s.root {
		return e
	}
	if n.all != nil {
		e.Levels = append(e.Levels, n.all.level(LevelNamespace))
	}
	switch found := n.allMatches(w.Labels); len(found) {
	case 0:
	case 1:
		e.Levels = append(e.Levels, found[0].level(LevelWorkload))
	default:
		l := found[0].level(LevelWorkload)
		l.Losers = names(merged(found)[1:])
		e.Levels = append(e.Levels, l)
	}
	return e
}

// merged has the policies of all groups, oldest first.
func merged(groups []*group) []*PeerAuthentication {
	var all []*PeerAuthentication
	for _, g := range groups {
		all = append(all, g.policies...)
	}
	slices.SortFunc(all, olderPolicy)
	return all
}

func names(policies []*PeerAuthentication) []Ref {
	var refs []Ref
	for _, p := range policies {
		refs = append(refs, p.Ref())
	}
	return refs
}

// ForPort is what holds for a container port.
func (d Decision) ForPort(port uint16) PortDecision {
	if p, ok := d.Ports[port]; ok {
		return p
	}
	return PortDecision{d.Mode, d.Policy}
}

// Modes is the decision without the names.
func (d Decision) Modes() Modes {
	m := Modes{Default: d.Mode}
	if len(d.Ports) == 0 {
		return m
	}
	m.Ports = make(map[uint16]Mode, len(d.Ports))
	for port, p := range d.Ports {
		m.Ports[port] = p.Mode
	}
	return m
}

// String is the level's name.
func (l Level) String() string {
	switch l {
	case LevelMesh:
		return "mesh"
	case LevelNamespace:
		return "namespace"
	case LevelWorkload:
		return "workload"
	}
	return fmt.Sprintf("Level(%d)", uint8(l))
}

// MarshalText makes a Level a plain string in JSON.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }
