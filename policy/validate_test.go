package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// short is a finding as "severity field".
func short(findings []Finding) []string {
	list := []string{}
	for _, f := range findings {
		list = append(list, fmt.Sprint(f.Severity, " ", f.Field))
	}
	return list
}

func TestValidate(t *testing.T) {
	many := make(map[string]string)
	for i := range maxSelectorLabels {
		many[fmt.Sprint(i)] = "x"
	}
	tooMany := map[string]string{"one": "more"}
	for k, v := range many {
		tooMany[k] = v
	}
	const labels, ports = "error spec.selector.matchLabels", "error spec.portLevelMtls"
	for _, tt := range []struct {
		name string
		p    PeerAuthentication
		want []string
	}{
		{"no selector", PeerAuthentication{Mode: Strict}, nil},
		{"nothing set at all", PeerAuthentication{}, nil},
		{"a selector and ports", PeerAuthentication{SelectorPresent: true, Selector: app("a"), Ports: map[uint16]Mode{1: Strict, 65535: Unset}}, nil},
		{"a selector without labels", PeerAuthentication{SelectorPresent: true}, []string{"warning spec.selector"}},
		{"ports without a selector", PeerAuthentication{Ports: map[uint16]Mode{80: Strict}}, []string{ports}},
		{"ports with an empty selector", PeerAuthentication{SelectorPresent: true, Selector: map[string]string{}, Ports: map[uint16]Mode{80: Strict}},
			[]string{"warning spec.selector", ports}},
		{"empty ports", PeerAuthentication{Selector: app("a"), Ports: map[uint16]Mode{}}, []string{ports}},
		{"port 0", PeerAuthentication{Selector: app("a"), Ports: map[uint16]Mode{0: Strict}}, []string{ports}},
		{"an unknown mode", PeerAuthentication{Mode: 7}, []string{"error spec.mtls.mode"}},
		{"an unknown mode of a port", PeerAuthentication{Selector: app("a"), Ports: map[uint16]Mode{80: 7}}, []string{"error spec.portLevelMtls.80.mode"}},
		{"an empty key", PeerAuthentication{Selector: map[string]string{"": "a"}}, []string{labels}},
		{"an empty value", PeerAuthentication{Selector: map[string]string{"a": ""}}, nil},
		{"an asterisk in a key", PeerAuthentication{Selector: map[string]string{"a*": "a"}}, []string{labels}},
		{"an asterisk in a value", PeerAuthentication{Selector: map[string]string{"a": "*"}}, []string{labels}},
		{"a value of 63 characters", PeerAuthentication{Selector: app(strings.Repeat("ä", 63))}, nil},
		{"a value of 64 characters", PeerAuthentication{Selector: app(strings.Repeat("a", 64))}, []string{labels}},
		{"4096 labels", PeerAuthentication{Selector: many}, nil},
		{"4097 labels", PeerAuthentication{Selector: tooMany}, []string{labels}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.p.Namespace, tt.p.Name = "default", "p"
			got := Validate(tt.p)
			if !slices.Equal(short(got), tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			for _, f := range got {
				if f.Object != "PeerAuthentication default/p" {
					t.Errorf("object %q", f.Object)
				}
			}
		})
	}
	if got := short(Validate(PeerAuthentication{})); !slices.Equal(got, []string{"error metadata.name", "error metadata.namespace"}) {
		t.Errorf("without a name: %v", got)
	}
}

func TestValidateRule(t *testing.T) {
	const field = "spec.trafficPolicy.tls"
	for _, tt := range []struct {
		name string
		r    DestinationRule
		want []string
	}{
		{"ISTIO_MUTUAL", DestinationRule{TLS: tls(TLSIstioMutual)}, nil},
		{"DISABLE", DestinationRule{TLS: tls(TLSDisable)}, nil},
		{"no tls", DestinationRule{}, nil},
		{"no host", DestinationRule{Host: "-"}, []string{"error spec.host"}},
		{"an asterisk inside the host", DestinationRule{Host: "re*.default.svc.cluster.local"}, []string{"error spec.host"}},
		{"a wildcard", DestinationRule{Host: "*.default.svc.cluster.local"}, nil},
		{"MUTUAL without certificates", DestinationRule{TLS: tls(TLSMutual)}, []string{"warning " + field + ".clientCertificate"}},
		{"MUTUAL with a certificate alone", DestinationRule{TLS: &ClientTLS{Mode: TLSMutual, ClientCertificate: "/c"}},
			[]string{"error " + field + ".privateKey", "warning " + field + ".mode"}},
		{"MUTUAL with a key alone", DestinationRule{TLS: &ClientTLS{Mode: TLSMutual, PrivateKey: "/k"}},
			[]string{"error " + field + ".clientCertificate", "warning " + field + ".mode"}},
		{"MUTUAL with both ways", DestinationRule{TLS: &ClientTLS{Mode: TLSMutual, PrivateKey: "/k", CredentialName: "c"}},
			[]string{"error " + field + ".credentialName", "warning " + field + ".mode"}},
		{"MUTUAL with certificates is not supported yet", DestinationRule{TLS: &ClientTLS{Mode: TLSMutual, CredentialName: "c"}},
			[]string{"warning " + field + ".mode"}},
		{"SIMPLE is not supported yet", DestinationRule{TLS: tls(TLSSimple)}, []string{"warning " + field + ".mode"}},
		{"ISTIO_MUTUAL with settings", DestinationRule{TLS: &ClientTLS{Mode: TLSIstioMutual, SNI: "x", CACertificates: "/ca"}},
			[]string{"warning " + field + ".caCertificates", "warning " + field + ".sni"}},
		{"a tls block without mode", DestinationRule{TLS: tls(TLSUnset)}, []string{"error " + field + ".mode"}},
		{"an unknown mode", DestinationRule{TLS: tls(9)}, []string{"error " + field + ".mode"}},
		{"the same for a port", DestinationRule{PortTLS: map[uint16]*ClientTLS{80: tls(TLSMutual), 81: nil}},
			[]string{"warning spec.trafficPolicy.portLevelSettings[80].tls.clientCertificate"}},
		{"port 0", DestinationRule{PortTLS: map[uint16]*ClientTLS{0: nil}}, []string{"error spec.trafficPolicy.portLevelSettings[0]"}},
		{"exported to an odd place", DestinationRule{ExportTo: []string{"", "a*"}}, []string{"error spec.exportTo", "error spec.exportTo"}},
		{"exported to all and some", DestinationRule{ExportTo: []string{"*", "a"}}, []string{"warning spec.exportTo"}},
		{"a workloadSelector that is exported away", DestinationRule{Selector: app("a"), ExportTo: []string{"test"}}, []string{"warning spec.exportTo"}},
		{"a workloadSelector with an asterisk", DestinationRule{Selector: app("*")}, []string{"error spec.workloadSelector.matchLabels"}},
		{"fields that are not used", DestinationRule{UnusedFields: []string{"spec.subsets"}}, []string{"warning spec.subsets"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.r.Namespace, tt.r.Name = "default", "r"
			switch tt.r.Host {
			case "":
				tt.r.Host = "reviews"
			case "-":
				tt.r.Host = ""
			}
			if got := ValidateRule(tt.r); !slices.Equal(short(got), tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestMutualWithoutCertificatesNamesTheFieldsThatAStrictReadingRequires(t *testing.T) {
	got := ValidateRule(dr("default", "r", at(0), "reviews", tls(TLSMutual)))
	if len(got) != 1 {
		t.Fatalf("got %v", got)
	}
	for _, field := range []string{"clientCertificate", "privateKey", "credentialName"} {
		if !strings.Contains(got[0].Message, field) {
			t.Errorf("%q does not name %s", got[0].Message, field)
		}
	}
}
