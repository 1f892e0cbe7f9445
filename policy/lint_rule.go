package policy

import (
	"fmt"
	"slices"
	"strings"
)

func (l *linter) warnRule(ref Ref, field, hint, format string, args ...any) {
	l.warn("DestinationRule "+ref.String(), field, hint, format, args...)
}

// rules checks the rules against each other, the Services and the workloads.
func (l *linter) rules(rules []DestinationRule) {
	byHost := make(map[Ref][]*DestinationRule) // by namespace and full host
	hosts := make(map[string]*LintService, len(l.in.Services))
	for i := range l.in.Services {
		s := &l.in.Services[i]
		hosts[serviceHost(s.Ref(), l.domain)] = s
	}
	for i := range rules {
		r := &rules[i]
		host := resolveHost(r.Host, r.Namespace, l.domain)
		key := Ref{r.Namespace, host}
		byHost[key] = append(byHost[key], r)
		l.ruleSelector(r)
		l.ruleServices(r, host, hosts)
	}
	for _, list := range byHost {
		l.ruleLosers(list)
	}
}

// ruleLosers reports rules for the same host that an older one hides from every client.
func (l *linter) ruleLosers(rules []*DestinationRule) {
	slices.SortFunc(rules, olderRule)
	// By what makes clients differ: the oldest rule with each audience, and the oldest for everybody.
	oldest := make(map[string]*DestinationRule)
	var everybody *DestinationRule
	for _, r := range rules {
		exported := slices.Clone(r.ExportTo)
		slices.Sort(exported)
		audience := labelKey(r.Selector) + "\n" + strings.Join(slices.Compact(exported), "\n")
		winner := everybody
		if winner == nil {
			winner = oldest[audience]
		}
		if winner != nil {
			l.warnRule(r.Ref(), "spec.host", "merge the two, or remove one",
				"has no effect: %s is older and is for the same host %s", winner.Ref(), r.Host)
			continue
		}
		oldest[audience] = r
		if len(r.Selector) == 0 && (len(r.ExportTo) == 0 || slices.Contains(r.ExportTo, "*")) {
			everybody = r
		}
	}
}

func (l *linter) ruleSelector(r *DestinationRule) {
	if len(r.Selector) == 0 || len(l.in.Workloads) == 0 {
		return
	}
	if len(l.pods[r.Namespace].selected(r.Selector)) == 0 {
		l.warnRule(r.Ref(), "spec.workloadSelector", "it selects clients, in the rule's own namespace",
			"selects no workload of namespace %s", r.Namespace)
	}
}

// ruleServices checks a rule against the Services that its host means.
func (l *linter) ruleServices(r *DestinationRule, host string, hosts map[string]*LintService) {
	if len(l.in.Services) == 0 {
		return
	}
	services := l.servicesOf(host, hosts)
	if len(services) == 0 {
		l.ruleWithoutService(r, host, hosts)
		return
	}
	l.rulePorts(r, services)
	l.ruleConflicts(r, services)
}

func (l *linter) servicesOf(host string, hosts map[string]*LintService) []*LintService {
	suffix, wild := strings.CutPrefix(host, "*")
	if !wild {
		if s := hosts[host]; s != nil {
			return []*LintService{s}
		}
		return nil
	}
	var found []*LintService
	for i := range l.in.Services {
		s := &l.in.Services[i]
		if name := serviceHost(s.Ref(), l.domain); len(suffix) < len(name) && strings.HasSuffix(name, suffix) {
			found = append(found, s)
		}
	}
	return found
}

// ruleWithoutService speaks of hosts inside the cluster only; any other host may well exist outside.
func (l *linter) ruleWithoutService(r *DestinationRule, host string, hosts map[string]*LintService) {
	if strings.HasSuffix(host, ".svc."+l.domain) {
		l.warnRule(r.Ref(), "spec.host", "", "no Service is called %s", host)
		return
	}
	name, rest, _ := strings.Cut(strings.TrimSuffix(host, ".svc"), ".")
	if full := serviceHost(Ref{rest, name}, l.domain); hosts[full] != nil {
		l.warnRule(r.Ref(), "spec.host", "write "+full,
			"a host with dots is taken as it stands, and no Service is called %s", host)
	}
}

// rulePorts looks for portLevelSettings of ports that none of the Services has.
func (l *linter) rulePorts(r *DestinationRule, services []*LintService) {
	for port := range r.PortTLS {
		missing := true
		for _, s := range services {
			if _, ok := s.Ports[port]; ok || len(s.Ports) == 0 {
				missing = false
				break
			}
		}
		if missing {
			l.warnRule(r.Ref(), portField(port)+".port", "ports here are the Service's, not the container's",
				"no Service that the host means has port %d", port)
		}
	}
}

// conflict is a rule's demand that the workloads behind a Service refuse.
type conflict struct {
	field, hint, message string
}

// ruleConflicts reports demands that end in refused connections, once for each kind and field.
func (l *linter) ruleConflicts(r *DestinationRule, services []*LintService) {
	if !r.demands() {
		return
	}
	count := make(map[conflict]int)
	example := make(map[conflict]Ref)
	for _, s := range services {
		for _, w := range l.services[s.Ref()] {
			decision := l.set.Effective(w.Workload)
			seen := make(map[conflict]bool)
			for port, target := range portsOf(s) {
				c, found := r.conflictWith(w, port, decision.ForPort(target))
				if !found || seen[c] {
					continue
				}
				seen[c] = true
				if count[c]++; count[c] == 1 || w.Ref().String() < example[c].String() {
					example[c] = w.Ref()
				}
			}
		}
	}
	for c, n := range count {
		l.warnRule(r.Ref(), c.field, c.hint, "%s: %s", c.message, workloads(n, example[c]))
	}
}

// demands reports whether the rule asks for plaintext or mTLS anywhere.
func (r *DestinationRule) demands() bool {
	for _, t := range r.PortTLS {
		if a := t.action(); a == Plaintext || a == Mutual {
			return true
		}
	}
	a := r.TLS.action()
	return a == Plaintext || a == Mutual
}

// portsOf are the Service's ports; where none is known, port 0 stands for those without settings of their own.
func portsOf(s *LintService) map[uint16]uint16 {
	if len(s.Ports) == 0 {
		return map[uint16]uint16{0: 0}
	}
	return s.Ports
}

func (r *DestinationRule) conflictWith(w *LintWorkload, port uint16, d PortDecision) (conflict, bool) {
	field := "spec.trafficPolicy.tls.mode"
	if _, ok := r.PortTLS[port]; ok {
		field = portField(port) + ".tls.mode"
	}
	switch action := r.forPort(port).action(); {
	case action == Plaintext && w.Enrolled && d.Mode == Strict:
		return conflict{field, "use ISTIO_MUTUAL, or remove the rule",
			fmt.Sprintf("DISABLE sends plaintext, which is refused by what PeerAuthentication %s makes STRICT", d.Policy)}, true
	case action == Mutual && !w.Enrolled:
		return conflict{field, "enrol the workload, or remove the rule",
			"requires mTLS, which a workload that is not enrolled cannot do: connections are refused"}, true
	case action == Mutual && d.Mode == Disable:
		return conflict{field, "change one of the two",
			fmt.Sprintf("requires mTLS, which is refused by what PeerAuthentication %s makes DISABLE", d.Policy)}, true
	}
	return conflict{}, false
}
