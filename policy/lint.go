package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// linter is what the checks of one Lint share.
type linter struct {
	in       LintInput
	set      *Set
	domain   string
	pods     map[string]*podIndex
	services map[Ref][]*LintWorkload          // what is behind each Service
	inFront  map[*LintWorkload][]*LintService // which Services lead to a workload
	findings []Finding
}

// Lint checks each object by itself and all of them together. The findings come in the order of their
// objects' names, errors first. Objects with errors are left out of what is checked together, since
// they will not be loaded.
func Lint(in LintInput) []Finding {
	l := &linter{in: in, domain: normalDomain(in.ClusterDomain)}
	if l.in.Root == "" {
		l.in.Root = DefaultRootNamespace
	}
	policies, rules := l.valid()
	l.set = NewSet(l.in.Root, policies)
	l.pods = indexPods(in.Workloads)
	l.joinServices()
	for i := range policies {
		l.policy(&policies[i])
	}
	l.groups()
	l.overlaps()
	l.rules(rules)
	slices.SortStableFunc(l.findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Severity, b.Severity),
			cmp.Compare(a.Field, b.Field), cmp.Compare(a.Message, b.Message))
	})
	return l.findings
}

// valid reports what is wrong with each object and returns those without errors.
func (l *linter) valid() (policies []PeerAuthentication, rules []DestinationRule) {
	for _, p := range l.in.Policies {
		found := Validate(p)
		l.findings = append(l.findings, found...)
		if !hasError(found) {
			policies = append(policies, p)
		}
	}
	for _, r := range l.in.Rules {
		found := ValidateRule(r)
		l.findings = append(l.findings, found...)
		if !hasError(found) {
			rules = append(rules, r)
		}
	}
	return policies, rules
}

func (l *linter) warn(object, field, hint, format string, args ...any) {
	l.findings = append(l.findings, Finding{Warning, object, field, fmt.Sprintf(format, args...), hint})
}

func (l *linter) warnPolicy(ref Ref, field, hint, format string, args ...any) {
	l.warn("PeerAuthentication "+ref.String(), field, hint, format, args...)
}

// policy checks one policy against the workloads that it selects.
func (l *linter) policy(p *PeerAuthentication) {
	const field = "spec.selector"
	if len(p.Selector) == 0 {
		return
	}
	if p.Namespace == l.in.Root {
		l.warnPolicy(p.Ref(), field, "remove the selector, or put the policy in the workloads' namespace",
			"ignored: a policy in the root namespace %s may not have a selector", l.in.Root)
		return
	}
	if len(l.in.Workloads) == 0 {
		return // nothing is known of workloads
	}
	found := l.pods[p.Namespace].selected(p.Selector)
	switch {
	case len(found) == 0:
		l.warnPolicy(p.Ref(), field, "", "selects no workload of namespace %s", p.Namespace)
	case !slices.ContainsFunc(found, func(w *LintWorkload) bool { return w.Enrolled }):
		l.warnPolicy(p.Ref(), field, "enrol it, or remove the policy",
			"selects only workloads that are not enrolled, such as %s: nothing enforces it", found[0].Ref())
	}
}

// policyPorts looks for ports of which no container of the selected workloads knows. Declaring ports is
// optional in Kubernetes, so it speaks up only where every workload declares some, or where the port is
// a Service's: the usual mistake.
func (l *linter) policyPorts(p *PeerAuthentication) {
	found := l.pods[p.Namespace].selected(p.Selector)
	if len(p.Ports) == 0 || len(found) == 0 {
		return
	}
	declared := true
	used := make(map[uint16]bool)
	for _, w := range found {
		declared = declared && len(w.Ports) > 0
		for _, port := range w.Ports {
			used[port] = true
		}
	}
	leads := l.servicePorts(found)
	for _, target := range leads {
		used[target] = true
	}
	for port := range p.Ports {
		field := fmt.Sprintf("spec.portLevelMtls.%d", port)
		target, isService := leads[port]
		switch {
		case used[port]:
		case isService:
			l.warnPolicy(p.Ref(), field, fmt.Sprintf("write %d", target),
				"%d is the Service's port, the container's is %d: ports here are the container's", port, target)
		case declared:
			l.warnPolicy(p.Ref(), field, "", "no container of the selected workloads declares port %d", port)
		}
	}
}

// servicePorts has the Service ports that lead to one of the workloads, and to which container port.
func (l *linter) servicePorts(workloads []*LintWorkload) map[uint16]uint16 {
	leads := make(map[uint16]uint16)
	for _, w := range workloads {
		for _, s := range l.inFront[w] {
			maps.Copy(leads, s.Ports)
		}
	}
	return leads
}

// groups reports policies that never have an effect, because an older one has the same selector, and looks
// at the ports of those that have.
func (l *linter) groups() {
	for namespace, n := range l.set.namespaces {
		if n.all != nil {
			what := "the whole namespace"
			if namespace == l.in.Root {
				what = "the whole mesh"
			}
			l.shadowed(n.all, what)
		}
		for _, g := range n.selected {
			if namespace == l.in.Root {
				continue // ignored there anyway, and said so
			}
			l.shadowed(g, "the same workloads")
			l.policyPorts(g.head())
		}
	}
}

func (l *linter) shadowed(g *group, what string) {
	for _, loser := range g.refs[1:] {
		l.warnPolicy(loser, "", "merge the two, or remove one",
			"has no effect: %s is older and selects %s; policies of one level are never merged", g.refs[0], what)
	}
}

// overlaps reports policies that lose on some workloads to an older one with another selector.
func (l *linter) overlaps() {
	type pair struct{ loser, winner *group }
	count := make(map[pair]int)
	example := make(map[pair]Ref)
	for namespace, pods := range l.pods {
		n := l.set.namespaces[namespace]
		if n == nil || namespace == l.in.Root {
			continue
		}
		for _, same := range pods.byLabels {
			found := n.allMatches(same[0].Labels)
			for i := 1; i < len(found); i++ {
				p := pair{found[i], found[0]}
				count[p] += len(same)
				if ref := same[0].Ref(); count[p] == len(same) || ref.String() < example[p].String() {
					example[p] = ref
				}
			}
		}
	}
	for p, c := range count {
		l.warnPolicy(p.loser.refs[0], "spec.selector", "make the selectors exclude each other",
			"has no effect on %s: %s is older and selects them too", workloads(c, example[p]), p.winner.refs[0])
	}
}

// workloads is "ns/pod" or "3 workloads such as ns/pod".
func workloads(count int, example Ref) string {
	if count == 1 {
		return example.String()
	}
	return fmt.Sprintf("%d workloads such as %s", count, example)
}

// podIndex finds the workloads of one namespace by their labels.
type podIndex struct {
	byLabel  map[label][]*LintWorkload
	byLabels [][]*LintWorkload // workloads with equal labels
	known    map[string][]*LintWorkload
}

func indexPods(workloads []LintWorkload) map[string]*podIndex {
	pods := make(map[string]*podIndex)
	same := make(map[Ref]int) // namespace and label key -> place in byLabels
	for i := range workloads {
		w := &workloads[i]
		p := pods[w.Namespace]
		if p == nil {
			p = &podIndex{byLabel: make(map[label][]*LintWorkload), known: make(map[string][]*LintWorkload)}
			pods[w.Namespace] = p
		}
		for key, value := range w.Labels {
			p.byLabel[label{key, value}] = append(p.byLabel[label{key, value}], w)
		}
		key := Ref{w.Namespace, labelKey(w.Labels)}
		at, ok := same[key]
		if !ok {
			at = len(p.byLabels)
			same[key] = at
			p.byLabels = append(p.byLabels, nil)
		}
		p.byLabels[at] = append(p.byLabels[at], w)
	}
	return pods
}

// selected are the workloads that a selector with labels matches, in input order.
func (p *podIndex) selected(selector map[string]string) []*LintWorkload {
	if p == nil || len(selector) == 0 {
		return nil
	}
	key := labelKey(selector)
	if found, ok := p.known[key]; ok {
		return found
	}
	var fewest []*LintWorkload
	first := true
	for k, v := range selector {
		if list := p.byLabel[label{k, v}]; first || len(list) < len(fewest) {
			fewest, first = list, false
		}
	}
	var found []*LintWorkload
	for _, w := range fewest {
		if matches(selector, w.Labels) {
			found = append(found, w)
		}
	}
	p.known[key] = found
	return found
}

// joinServices finds the workloads behind each Service, and the Services in front of each workload.
func (l *linter) joinServices() {
	byRef := make(map[Ref]*LintWorkload, len(l.in.Workloads))
	for i := range l.in.Workloads {
		byRef[l.in.Workloads[i].Ref()] = &l.in.Workloads[i]
	}
	l.services = make(map[Ref][]*LintWorkload, len(l.in.Services))
	l.inFront = make(map[*LintWorkload][]*LintService)
	for i := range l.in.Services {
		s := &l.in.Services[i]
		found := slices.Clone(l.pods[s.Namespace].selected(s.Selector))
		for _, ref := range s.Workloads {
			if w := byRef[ref]; w != nil && !matchedBy(s, w) {
				found = append(found, w)
			}
		}
		l.services[s.Ref()] = found
		for _, w := range found {
			l.inFront[w] = append(l.inFront[w], s)
		}
	}
}

// matchedBy reports whether the Service's own selector already has the workload.
func matchedBy(s *LintService, w *LintWorkload) bool {
	return len(s.Selector) > 0 && s.Namespace == w.Namespace && matches(s.Selector, w.Labels)
}
