package policy

import (
	"fmt"
	"slices"
	"strings"
)

// ParseTLSMode reads the API's spelling, and nothing else. The empty string is TLSUnset.
func ParseTLSMode(s string) (TLSMode, error) {
	switch s {
	case "":
		return TLSUnset, nil
	case "DISABLE":
		return TLSDisable, nil
	case "SIMPLE":
		return TLSSimple, nil
	case "MUTUAL":
		return TLSMutual, nil
	case "ISTIO_MUTUAL":
		return TLSIstioMutual, nil
	}
	return TLSUnset, fmt.Errorf("tls mode %q is unknown (DISABLE, SIMPLE, MUTUAL or ISTIO_MUTUAL)", s)
}

// String is the name the API uses.
func (m TLSMode) String() string {
	switch m {
	case TLSUnset:
		return ""
	case TLSDisable:
		return "DISABLE"
	case TLSSimple:
		return "SIMPLE"
	case TLSMutual:
		return "MUTUAL"
	case TLSIstioMutual:
		return "ISTIO_MUTUAL"
	}
	return fmt.Sprintf("TLSMode(%d)", uint8(m))
}

// MarshalText makes a TLSMode a plain string in JSON.
func (m TLSMode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// String is the action in one word.
func (a ClientAction) String() string {
	switch a {
	case Auto:
		return "auto"
	case Plaintext:
		return "plaintext"
	case Mutual:
		return "mutual"
	case Originate:
		return "originate"
	}
	return fmt.Sprintf("ClientAction(%d)", uint8(a))
}

// MarshalText makes a ClientAction a plain string in JSON.
func (a ClientAction) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// hasCertificate reports whether the settings name anything of a client certificate.
func (t *ClientTLS) hasCertificate() bool {
	return t.ClientCertificate != "" || t.PrivateKey != "" || t.CredentialName != ""
}

// action is what the settings ask of a client; nil asks for nothing.
func (t *ClientTLS) action() ClientAction {
	switch {
	case t == nil || t.Mode == TLSUnset:
		return Auto
	case t.Mode == TLSDisable:
		return Plaintext
	case t.Mode == TLSIstioMutual, t.Mode == TLSMutual && !t.hasCertificate():
		return Mutual
	}
	return Originate // also a mode out of range: callers refuse what they cannot do
}

// forPort are the settings for a Service port. An entry for the port stands alone, also without tls.
func (r *DestinationRule) forPort(port uint16) *ClientTLS {
	if t, ok := r.PortTLS[port]; ok {
		return t
	}
	return r.TLS
}

// visible reports whether the rule is exported to the namespace.
func (r *DestinationRule) visible(namespace string) bool {
	return len(r.ExportTo) == 0 || slices.ContainsFunc(r.ExportTo, func(to string) bool {
		return to == "*" || to == "." && namespace == r.Namespace || to == namespace
	})
}

// appliesTo reports whether the rule is meant for the client. A workloadSelector does not reach
// beyond the rule's own namespace.
func (r *DestinationRule) appliesTo(client Workload) bool {
	if !r.visible(client.Namespace) {
		return false
	}
	return len(r.Selector) == 0 || r.Namespace == client.Namespace && matches(r.Selector, client.Labels)
}

// RuleSet is an index of DestinationRules. It never changes and may be used concurrently.
type RuleSet struct {
	root, domain string
	namespaces   map[string]*namespaceRules
}

// namespaceRules are the rules of one namespace, by host, each list oldest first.
type namespaceRules struct {
	exact map[string][]*DestinationRule
	// wild is by what follows the asterisk; lengths are its keys' lengths, the longest first.
	wild    map[string][]*DestinationRule
	lengths []int
}

// NewRuleSet indexes the rules; "" stands for DefaultRootNamespace and DefaultClusterDomain. What the
// rules point to must not be changed afterwards.
func NewRuleSet(root, clusterDomain string, rules []DestinationRule) *RuleSet {
	if root == "" {
		root = DefaultRootNamespace
	}
	s := &RuleSet{root: root, domain: normalDomain(clusterDomain), namespaces: make(map[string]*namespaceRules)}
	own := slices.Clone(rules)
	for i := range own {
		s.add(&own[i])
	}
	for _, n := range s.namespaces {
		n.sort()
	}
	return s
}

func (s *RuleSet) add(r *DestinationRule) {
	host := resolveHost(r.Host, r.Namespace, s.domain)
	if host == "" {
		return
	}
	n := s.namespaces[r.Namespace]
	if n == nil {
		n = &namespaceRules{exact: make(map[string][]*DestinationRule), wild: make(map[string][]*DestinationRule)}
		s.namespaces[r.Namespace] = n
	}
	if suffix, ok := strings.CutPrefix(host, "*"); ok {
		n.wild[suffix] = append(n.wild[suffix], r)
		return
	}
	n.exact[host] = append(n.exact[host], r)
}

func (n *namespaceRules) sort() {
	for _, list := range n.exact {
		slices.SortFunc(list, olderRule)
	}
	for suffix, list := range n.wild {
		slices.SortFunc(list, olderRule)
		n.lengths = append(n.lengths, len(suffix))
	}
	slices.Sort(n.lengths)
	slices.Reverse(n.lengths)
	n.lengths = slices.Compact(n.lengths)
}

// find is the rule for a full host name: the most specific host that has one for this client, then the oldest.
func (n *namespaceRules) find(host string, client Workload) *DestinationRule {
	if r := first(n.exact[host], client); r != nil {
		return r
	}
	for _, length := range n.lengths {
		if length >= len(host) {
			continue
		}
		if r := first(n.wild[host[len(host)-length:]], client); r != nil {
			return r
		}
	}
	return nil
}

func first(rules []*DestinationRule, client Workload) *DestinationRule {
	for _, r := range rules {
		if r.appliesTo(client) {
			return r
		}
	}
	return nil
}

// Lookup decides what client does towards a Service's port (not the container's). It never fails:
// where no rule says anything the answer is Auto. The rules of the client's namespace are asked first,
// then those of the Service's, then those of the root namespace; the first namespace that has a rule
// decides, also when that rule has no tls settings. A zero service is an address that belongs to none:
// rules are about Services and say nothing of it.
func (s *RuleSet) Lookup(client Workload, service Ref, port uint16) RuleDecision {
	if service == (Ref{}) {
		return RuleDecision{Reason: "the destination is not a Service"}
	}
	host := serviceHost(service, s.domain)
	for _, namespace := range [...]string{client.Namespace, service.Namespace, s.root} {
		n := s.namespaces[namespace]
		if n == nil {
			continue
		}
		if r := n.find(host, client); r != nil {
			return r.decide(port)
		}
	}
	return RuleDecision{Reason: "no DestinationRule for " + host}
}

// decide is the chosen rule's word on a Service port.
func (r *DestinationRule) decide(port uint16) RuleDecision {
	t := r.forPort(port)
	d := RuleDecision{Client: t.action(), Rule: r.Ref(), TLS: t}
	where := "trafficPolicy.tls"
	if _, ok := r.PortTLS[port]; ok {
		where = fmt.Sprintf("portLevelSettings for port %d", port)
	}
	d.Reason = fmt.Sprintf("DestinationRule %s: %s %s", d.Rule, where, t.meaning())
	return d
}

// meaning completes the sentence "these settings ...".
func (t *ClientTLS) meaning() string {
	switch t.action() {
	case Auto:
		return "sets no TLS mode"
	case Plaintext:
		return "is DISABLE: plaintext"
	case Mutual:
		if t.Mode == TLSMutual {
			return "is MUTUAL without certificates: taken as ISTIO_MUTUAL, mTLS or no connection"
		}
		return "is ISTIO_MUTUAL: mTLS or no connection"
	}
	return fmt.Sprintf("is %s: TLS originated with settings of its own", t.Mode)
}

// normalDomain is a DNS domain in the form in which hosts are compared.
func normalDomain(domain string) string {
	if domain = strings.ToLower(strings.Trim(domain, ".")); domain == "" {
		return DefaultClusterDomain
	}
	return domain
}

// serviceHost is the full name of a Service.
func serviceHost(service Ref, domain string) string {
	return strings.ToLower(service.Name+"."+service.Namespace) + ".svc." + domain
}

// resolveHost is a rule's host in full. A name without dots is a Service of the rule's namespace; any
// other name is taken as it stands, as the API says: "reviews.default" is not a Service's name.
func resolveHost(host, namespace, domain string) string {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if host == "" || strings.ContainsAny(host, ".*") {
		return host
	}
	return serviceHost(Ref{namespace, host}, domain)
}
