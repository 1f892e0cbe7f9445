package istio

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/culvert-mesh/culvert/policy"
)

// DestinationRule reads a spec of networking.istio.io's v1, v1beta1 or v1alpha3, which are the same. tolerant accepts
// fields that are newer than this agent where they cannot touch TLS, and names them among the unused ones: most of
// the API is load balancing, and grows with each release.
func DestinationRule(meta Meta, spec any, tolerant bool) (*policy.DestinationRule, []FieldError) {
	var dr networking.DestinationRule
	unknown, errs := readSpec(spec, &dr, tolerant)
	if len(errs) > 0 {
		return nil, errs
	}
	if dr.GetHost() == "" {
		return nil, []FieldError{{"spec.host", errors.New("missing")}}
	}
	r := &policy.DestinationRule{
		Namespace: meta.Namespace, Name: meta.Name, Created: meta.Created,
		Host:         dr.GetHost(),
		Selector:     dr.GetWorkloadSelector().GetMatchLabels(),
		ExportTo:     dr.GetExportTo(),
		UnusedFields: unused(spec, unknown),
	}
	var err error
	if r.TLS, err = clientTLS(dr.GetTrafficPolicy().GetTls(), at(spec, "trafficPolicy", "tls")); err != nil {
		return nil, []FieldError{{"spec.trafficPolicy.tls", err}}
	}
	written, _ := at(spec, "trafficPolicy", "portLevelSettings").([]any)
	for i, setting := range dr.GetTrafficPolicy().GetPortLevelSettings() {
		if err := addPort(r, setting, at(written[i], "tls")); err != nil {
			return nil, []FieldError{{"spec.trafficPolicy.portLevelSettings[" + strconv.Itoa(i) + "]", err}}
		}
	}
	if errs := refused(policy.ValidateRule(*r)); len(errs) > 0 {
		return nil, errs
	}
	return r, nil
}

func addPort(r *policy.DestinationRule, setting *networking.TrafficPolicy_PortTrafficPolicy, written any) error {
	number := setting.GetPort().GetNumber()
	if number < 1 || number > 65535 {
		return fmt.Errorf("port.number %d is not between 1 and 65535", number)
	}
	if _, twice := r.PortTLS[uint16(number)]; twice {
		return fmt.Errorf("port.number %d appears twice", number)
	}
	tls, err := clientTLS(setting.GetTls(), written)
	if err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	if r.PortTLS == nil {
		r.PortTLS = map[uint16]*policy.ClientTLS{}
	}
	r.PortTLS[uint16(number)] = tls
	return nil
}

// clientTLS translates tls settings. The API has no unset mode, its zero is DISABLE: only what was written
// tells settings without a mode from those that ask for plaintext.
func clientTLS(s *networking.ClientTLSSettings, written any) (*policy.ClientTLS, error) {
	if s == nil {
		return nil, nil
	}
	mode := policy.TLSUnset
	if at(written, "mode") != nil {
		var err error
		if mode, err = policy.ParseTLSMode(s.GetMode().String()); err != nil {
			return nil, err
		}
	}
	return &policy.ClientTLS{
		Mode:               mode,
		ClientCertificate:  s.GetClientCertificate(),
		PrivateKey:         s.GetPrivateKey(),
		CACertificates:     s.GetCaCertificates(),
		CredentialName:     s.GetCredentialName(),
		SNI:                s.GetSni(),
		SubjectAltNames:    s.GetSubjectAltNames(),
		InsecureSkipVerify: s.GetInsecureSkipVerify().GetValue(),
	}, nil
}

// unused lists the fields of a DestinationRule that this agent accepts and does nothing with.
func unused(spec any, unknown []string) []string {
	paths := others(spec, "spec", "host", "trafficPolicy", "workloadSelector", "exportTo")
	traffic := at(spec, "trafficPolicy")
	paths = append(paths, others(traffic, "spec.trafficPolicy", "tls", "portLevelSettings")...)
	paths = append(paths, others(at(traffic, "tls"), "spec.trafficPolicy.tls", usedTLS()...)...)
	settings, _ := at(traffic, "portLevelSettings").([]any)
	for i, s := range settings {
		path := "spec.trafficPolicy.portLevelSettings[" + strconv.Itoa(i) + "]"
		paths = append(paths, others(s, path, "port", "tls")...)
		paths = append(paths, others(at(s, "tls"), path+".tls", usedTLS()...)...)
	}
	for _, path := range unknown {
		if !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	return paths
}

func usedTLS() []string {
	return []string{"mode", "clientCertificate", "privateKey", "caCertificates", "credentialName", "sni", "subjectAltNames", "insecureSkipVerify"}
}

// others lists the keys of a mapping that are not among the known ones, in order of name.
func others(v any, path string, known ...string) []string {
	m, _ := v.(map[string]any)
	var paths []string
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if m[key] != nil && !slices.Contains(known, key) {
			paths = append(paths, path+"."+key)
		}
	}
	return paths
}
