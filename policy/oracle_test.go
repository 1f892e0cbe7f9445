package policy

import "time"

// The oracles below follow the specification sentence by sentence: lists, no index, nothing of the
// package's own functions. Slow, and meant to be read.

// wins reports whether an object with the first creation, name and namespace precedes the second's.
func oracleWins(aCreated time.Time, aName, aNamespace string, bCreated time.Time, bName, bNamespace string) bool {
	switch {
	case aCreated.IsZero() != bCreated.IsZero():
		return bCreated.IsZero() // what is not created yet is newer
	case aCreated.Unix() != bCreated.Unix():
		return aCreated.Unix() < bCreated.Unix()
	case aName != bName:
		return aName < bName
	}
	return aNamespace < bNamespace
}

func oracleSelects(selector, labels map[string]string) bool {
	for key, value := range selector {
		got, present := labels[key]
		if !present || got != value {
			return false
		}
	}
	return true
}

// oracleEffective is the mode of a port and who decided it.
func oracleEffective(root string, policies []PeerAuthentication, w Workload, port uint16) (mode, decidedBy string) {
	var mesh, namespace, workload *PeerAuthentication
	for i := range policies {
		p := &policies[i]
		var slot **PeerAuthentication
		switch {
		case p.Namespace == root && len(p.Selector) == 0:
			slot = &mesh
		case p.Namespace == root:
			continue // a selector in the root namespace is ignored
		case p.Namespace != w.Namespace:
			continue
		case len(p.Selector) == 0:
			slot = &namespace
		case oracleSelects(p.Selector, w.Labels):
			slot = &workload
		default:
			continue
		}
		if *slot == nil || oracleWins(p.Created, p.Name, p.Namespace, (*slot).Created, (*slot).Name, (*slot).Namespace) {
			*slot = p
		}
	}
	mode, decidedBy = "PERMISSIVE", "default"
	for _, p := range []*PeerAuthentication{mesh, namespace, workload} {
		if p != nil && p.Mode != Unset {
			mode, decidedBy = p.Mode.String(), p.Namespace+"/"+p.Name
		}
	}
	if workload != nil {
		if m, named := workload.Ports[port]; named && m != Unset {
			mode, decidedBy = m.String(), workload.Namespace+"/"+workload.Name
		}
	}
	return mode, decidedBy
}

// oracleHost reports whether a rule's host means the Service, and how specific it is.
func oracleHost(r *DestinationRule, service Ref) (specific int, ok bool) {
	full := service.Name + "." + service.Namespace + ".svc.cluster.local"
	host := r.Host
	if host != "" && host[0] == '*' {
		suffix := host[1:]
		if len(full) > len(suffix) && full[len(full)-len(suffix):] == suffix {
			return len(suffix), true
		}
		return 0, false
	}
	dots := false
	for _, c := range host {
		dots = dots || c == '.'
	}
	if !dots {
		host += "." + r.Namespace + ".svc.cluster.local"
	}
	return 1000, r.Host != "" && host == full
}

// oracleRule is the rule that stands for a client and a Service, or nil.
func oracleRule(root string, rules []DestinationRule, client Workload, service Ref) *DestinationRule {
	for _, namespace := range []string{client.Namespace, service.Namespace, root} {
		var best *DestinationRule
		bestSpecific := -1
		for i := range rules {
			r := &rules[i]
			specific, ok := oracleHost(r, service)
			if r.Namespace != namespace || !ok || !oracleExported(r, client.Namespace) {
				continue
			}
			if len(r.Selector) > 0 && (r.Namespace != client.Namespace || !oracleSelects(r.Selector, client.Labels)) {
				continue
			}
			if specific > bestSpecific || specific == bestSpecific &&
				oracleWins(r.Created, r.Name, r.Namespace, best.Created, best.Name, best.Namespace) {
				best, bestSpecific = r, specific
			}
		}
		if best != nil {
			return best
		}
	}
	return nil
}

func oracleExported(r *DestinationRule, namespace string) bool {
	if len(r.ExportTo) == 0 {
		return true
	}
	for _, to := range r.ExportTo {
		if to == "*" || to == namespace || to == "." && r.Namespace == namespace {
			return true
		}
	}
	return false
}

// oracleAction is what a client does by a rule.
func oracleAction(r *DestinationRule, port uint16) ClientAction {
	if r == nil {
		return Auto
	}
	t := r.TLS
	for p, own := range r.PortTLS {
		if p == port {
			t = own
		}
	}
	if t == nil {
		return Auto
	}
	switch t.Mode {
	case TLSUnset:
		return Auto
	case TLSDisable:
		return Plaintext
	case TLSIstioMutual:
		return Mutual
	case TLSMutual:
		if t.ClientCertificate == "" && t.PrivateKey == "" && t.CredentialName == "" {
			return Mutual
		}
	}
	return Originate
}
