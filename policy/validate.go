package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// Limits of the API on selectors.
const (
	maxSelectorLabels = 4096
	maxLabelValue     = 63
)

// String is the severity in one word.
func (s Severity) String() string {
	switch s {
	case Error:
		return "error"
	case Warning:
		return "warning"
	}
	return fmt.Sprintf("Severity(%d)", uint8(s))
}

// MarshalText makes a Severity a plain string in JSON.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String is the finding on one line.
func (f Finding) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s: ", f.Severity, f.Object)
	if f.Field != "" {
		b.WriteString(f.Field + ": ")
	}
	b.WriteString(f.Message)
	if f.Hint != "" {
		b.WriteString(" (" + f.Hint + ")")
	}
	return b.String()
}

// remarks collects the findings about one object.
type remarks struct {
	object string
	list   []Finding
}

func (r *remarks) error(field, hint, format string, args ...any) {
	r.list = append(r.list, Finding{Error, r.object, field, fmt.Sprintf(format, args...), hint})
}

func (r *remarks) warn(field, hint, format string, args ...any) {
	r.list = append(r.list, Finding{Warning, r.object, field, fmt.Sprintf(format, args...), hint})
}

// hasError reports whether any of the findings is an error.
func hasError(findings []Finding) bool {
	return slices.ContainsFunc(findings, func(f Finding) bool { return f.Severity == Error })
}

// Validate checks one policy by itself, by the rules of the API. A policy with errors must not replace
// an earlier good version of itself.
func Validate(p PeerAuthentication) []Finding {
	r := remarks{object: "PeerAuthentication " + p.Ref().String()}
	r.name(p.Ref())
	r.mode("spec.mtls.mode", p.Mode)
	r.selector("spec.selector.matchLabels", p.Selector)
	if p.SelectorPresent && len(p.Selector) == 0 {
		r.warn("spec.selector", "remove it, or give it matchLabels",
			"a selector without labels selects every workload, as no selector does")
	}
	r.ports(p)
	return r.list
}

func (r *remarks) name(ref Ref) {
	if ref.Name == "" {
		r.error("metadata.name", "", "the name is missing")
	}
	if ref.Namespace == "" {
		r.error("metadata.namespace", "", "the namespace is missing")
	}
}

func (r *remarks) mode(field string, m Mode) {
	if m > Strict {
		r.error(field, "UNSET, DISABLE, PERMISSIVE or STRICT", "mode %s is unknown", m)
	}
}

func (r *remarks) ports(p PeerAuthentication) {
	const field = "spec.portLevelMtls"
	if p.Ports == nil {
		return
	}
	if len(p.Selector) == 0 {
		r.error(field, "add spec.selector.matchLabels", "port modes need a selector with labels")
	}
	if len(p.Ports) == 0 {
		r.error(field, "name a port, or remove it", "it may not be empty")
	}
	for _, port := range slices.Sorted(maps.Keys(p.Ports)) {
		if port == 0 {
			r.error(field, "", "port 0 is not a port (1 to 65535)")
		}
		r.mode(fmt.Sprintf("%s.%d.mode", field, port), p.Ports[port])
	}
}

func (r *remarks) selector(field string, labels map[string]string) {
	if len(labels) > maxSelectorLabels {
		r.error(field, "", "%d labels are too many (at most %d)", len(labels), maxSelectorLabels)
	}
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		value := labels[key]
		switch {
		case key == "":
			r.error(field, "", "a label's key is empty")
		case strings.Contains(key, "*"):
			r.error(field, "labels are compared as they stand", "key %q has an asterisk", key)
		}
		if strings.Contains(value, "*") {
			r.error(field, "labels are compared as they stand", "the value %q of %q has an asterisk", value, key)
		}
		if n := utf8.RuneCountInString(value); n > maxLabelValue {
			r.error(field, "", "the value of %q has %d characters (at most %d)", key, n, maxLabelValue)
		}
	}
}

// ValidateRule checks one rule by itself. A rule with errors may be given to NewRuleSet all the same:
// what cannot be carried out is then refused to its clients, never done in plaintext.
func ValidateRule(d DestinationRule) []Finding {
	r := remarks{object: "DestinationRule " + d.Ref().String()}
	r.name(d.Ref())
	r.host(d.Host)
	r.tls("spec.trafficPolicy.tls", d.TLS)
	for _, port := range slices.Sorted(maps.Keys(d.PortTLS)) {
		field := portField(port)
		if port == 0 {
			r.error(field, "", "port 0 is not a port (1 to 65535)")
		}
		r.tls(field+".tls", d.PortTLS[port])
	}
	r.selector("spec.workloadSelector.matchLabels", d.Selector)
	r.exportTo(d)
	for _, field := range d.UnusedFields {
		r.warn(field, "", "not used by this agent")
	}
	return r.list
}

// portField is the path of a portLevelSettings entry, found by its port as the list has no keys.
func portField(port uint16) string {
	return fmt.Sprintf("spec.trafficPolicy.portLevelSettings[%d]", port)
}

func (r *remarks) host(host string) {
	const field = "spec.host"
	switch {
	case host == "":
		r.error(field, "", "the host is missing")
	case strings.LastIndexByte(host, '*') > 0:
		r.error(field, "such as *.default.svc.cluster.local", "an asterisk may only be the first character of %q", host)
	}
}

func (r *remarks) exportTo(d DestinationRule) {
	const field = "spec.exportTo"
	for _, to := range d.ExportTo {
		switch {
		case to == "":
			r.error(field, `".", "*" or a namespace`, "an entry is empty")
		case to == "*" && len(d.ExportTo) > 1:
			r.warn(field, "", `"*" exports to every namespace, the other entries add nothing`)
		case to != "*" && strings.Contains(to, "*"):
			r.error(field, `".", "*" or a namespace`, "%q is no namespace", to)
		}
	}
	if len(d.Selector) > 0 && !d.visible(d.Namespace) {
		r.warn(field, `add "."`, "a workloadSelector reaches only the rule's own namespace, and the rule is not exported there")
	}
}

func (r *remarks) tls(field string, t *ClientTLS) {
	if t == nil {
		return
	}
	switch t.Mode {
	case TLSUnset:
		r.error(field+".mode", "DISABLE, SIMPLE, MUTUAL or ISTIO_MUTUAL", "the mode is missing")
	case TLSDisable:
	case TLSSimple:
		r.notSupported(field, t.Mode)
	case TLSMutual:
		r.mutual(field, t)
	case TLSIstioMutual:
		r.istioMutual(field, t)
	default:
		r.error(field+".mode", "DISABLE, SIMPLE, MUTUAL or ISTIO_MUTUAL", "mode %s is unknown", t.Mode)
	}
}

func (r *remarks) notSupported(field string, m TLSMode) {
	r.warn(field+".mode", "", "%s with settings of its own is not supported yet: connections are refused", m)
}

func (r *remarks) mutual(field string, t *ClientTLS) {
	if !t.hasCertificate() {
		r.warn(field+".clientCertificate", "write ISTIO_MUTUAL, which means what this agent does",
			"MUTUAL requires clientCertificate and privateKey, or credentialName; without them it is taken as ISTIO_MUTUAL")
		return
	}
	switch {
	case t.CredentialName != "" && (t.ClientCertificate != "" || t.PrivateKey != ""):
		r.error(field+".credentialName", "", "credentialName excludes clientCertificate and privateKey")
	case t.CredentialName != "":
	case t.ClientCertificate == "":
		r.error(field+".clientCertificate", "", "MUTUAL with privateKey requires clientCertificate")
	case t.PrivateKey == "":
		r.error(field+".privateKey", "", "MUTUAL with clientCertificate requires privateKey")
	}
	r.notSupported(field, t.Mode)
}

// istioMutual names the settings that have no effect: identities and roots are the mesh's own.
func (r *remarks) istioMutual(field string, t *ClientTLS) {
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"clientCertificate", t.ClientCertificate != ""},
		{"privateKey", t.PrivateKey != ""},
		{"caCertificates", t.CACertificates != ""},
		{"credentialName", t.CredentialName != ""},
		{"subjectAltNames", len(t.SubjectAltNames) > 0},
		{"sni", t.SNI != ""},
		{"insecureSkipVerify", t.InsecureSkipVerify},
	} {
		if f.set {
			r.warn(field+"."+f.name, "", "not used with ISTIO_MUTUAL, which takes the workload's own identity and the mesh's roots")
		}
	}
}
