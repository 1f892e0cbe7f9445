package file

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"

	"github.com/culvert-mesh/culvert/policy"
)

// readSpec checks the whole object against the API and decodes its spec into m.
func readSpec(n *yaml.Node, m proto.Message) []fieldError {
	var errs []fieldError
	for i := 0; i+1 < len(n.Content); i += 2 {
		switch key := n.Content[i]; key.Value {
		case "apiVersion", "kind", "metadata", "spec", "status":
		default:
			errs = append(errs, fieldErrorf(key, key.Value, "unknown field: does it belong under spec?"))
		}
	}
	if key := unknownMetadata(get(n, "metadata")); key != nil {
		errs = append(errs, fieldErrorf(key, "metadata."+key.Value, "unknown field"))
	}
	spec := get(n, "spec")
	if spec == nil {
		return errs
	}
	errs = append(errs, checkMessage(spec, m.ProtoReflect().Descriptor(), "spec")...)
	if len(errs) > 0 {
		return errs
	}
	var b bytes.Buffer
	if f := writeJSON(&b, spec, "spec", 0); f != nil {
		return []fieldError{*f}
	}
	if err := protojson.Unmarshal(b.Bytes(), m); err != nil {
		return []fieldError{{spec.Line, "spec", err}}
	}
	return nil
}

// unknownMetadata returns a key that metadata does not have. A misspelt "namespace" would otherwise move
// a policy to another namespace without a word.
func unknownMetadata(meta *yaml.Node) *yaml.Node {
	for i := 0; meta != nil && i+1 < len(meta.Content); i += 2 {
		switch meta.Content[i].Value {
		case "name", "generateName", "namespace", "selfLink", "uid", "resourceVersion", "generation", "labels",
			"annotations", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "ownerReferences",
			"finalizers", "managedFields", "clusterName":
		default:
			return meta.Content[i]
		}
	}
	return nil
}

func readPolicy(o *object, h header, n *yaml.Node) []fieldError {
	var pa security.PeerAuthentication
	if errs := readSpec(n, &pa); len(errs) > 0 {
		return errs
	}
	p := &policy.PeerAuthentication{
		Namespace: h.id.namespace, Name: h.id.name, Created: h.created,
		SelectorPresent: pa.GetSelector() != nil,
		Selector:        pa.GetSelector().GetMatchLabels(),
	}
	var err error
	if p.Mode, err = policy.ParseMode(pa.GetMtls().GetMode().String()); err != nil {
		return []fieldError{{lookup(n, "spec.mtls.mode"), "spec.mtls.mode", err}}
	}
	if get(get(n, "spec"), "portLevelMtls") != nil {
		p.Ports = make(map[uint16]policy.Mode, len(pa.GetPortLevelMtls()))
	}
	for port, mtls := range pa.GetPortLevelMtls() {
		mode, err := policy.ParseMode(mtls.GetMode().String())
		if err != nil {
			field := "spec.portLevelMtls[" + strconv.Itoa(int(port)) + "]"
			return []fieldError{{lookup(n, field), field, err}}
		}
		p.Ports[uint16(port)] = mode
	}
	o.policy = p
	return refused(n, policy.Validate(*p))
}

// refused turns the findings that the API would refuse an object for into errors.
func refused(n *yaml.Node, findings []policy.Finding) []fieldError {
	var errs []fieldError
	for _, f := range findings {
		if f.Severity != policy.Error {
			continue
		}
		message := f.Message
		if f.Hint != "" {
			message += " (" + f.Hint + ")"
		}
		errs = append(errs, fieldError{lookup(n, f.Field), f.Field, errors.New(message)})
	}
	return errs
}

func readRule(o *object, h header, n *yaml.Node) []fieldError {
	var dr networking.DestinationRule
	if errs := readSpec(n, &dr); len(errs) > 0 {
		return errs
	}
	if dr.GetHost() == "" {
		return []fieldError{{lookup(n, "spec.host"), "spec.host", errors.New("missing")}}
	}
	r := &policy.DestinationRule{
		Namespace: h.id.namespace, Name: h.id.name, Created: h.created,
		Host:         dr.GetHost(),
		Selector:     dr.GetWorkloadSelector().GetMatchLabels(),
		ExportTo:     dr.GetExportTo(),
		UnusedFields: unused(get(n, "spec")),
	}
	traffic := get(get(n, "spec"), "trafficPolicy")
	var err error
	if r.TLS, err = clientTLS(dr.GetTrafficPolicy().GetTls(), get(traffic, "tls")); err != nil {
		return []fieldError{{lookup(n, "spec.trafficPolicy.tls"), "spec.trafficPolicy.tls", err}}
	}
	for i, setting := range dr.GetTrafficPolicy().GetPortLevelSettings() {
		field := "spec.trafficPolicy.portLevelSettings[" + strconv.Itoa(i) + "]"
		if err := addPort(r, setting, get(get(traffic, "portLevelSettings").Content[i], "tls")); err != nil {
			return []fieldError{{lookup(n, field), field, err}}
		}
	}
	o.rule = r
	return refused(n, policy.ValidateRule(*r))
}

func addPort(r *policy.DestinationRule, setting *networking.TrafficPolicy_PortTrafficPolicy, written *yaml.Node) error {
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
func clientTLS(s *networking.ClientTLSSettings, written *yaml.Node) (*policy.ClientTLS, error) {
	if s == nil {
		return nil, nil
	}
	mode := policy.TLSUnset
	if get(written, "mode") != nil {
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
func unused(spec *yaml.Node) []string {
	paths := others(spec, "spec", "host", "trafficPolicy", "workloadSelector", "exportTo")
	traffic := get(spec, "trafficPolicy")
	paths = append(paths, others(traffic, "spec.trafficPolicy", "tls", "portLevelSettings")...)
	paths = append(paths, others(get(traffic, "tls"), "spec.trafficPolicy.tls", usedTLS()...)...)
	settings := get(traffic, "portLevelSettings")
	if settings == nil {
		return paths
	}
	for i, s := range settings.Content {
		path := "spec.trafficPolicy.portLevelSettings[" + strconv.Itoa(i) + "]"
		paths = append(paths, others(s, path, "port", "tls")...)
		paths = append(paths, others(get(s, "tls"), path+".tls", usedTLS()...)...)
	}
	return paths
}

func usedTLS() []string {
	return []string{"mode", "clientCertificate", "privateKey", "caCertificates", "credentialName", "sni", "subjectAltNames", "insecureSkipVerify"}
}

// others lists the keys of a mapping that are not among the known ones.
func others(n *yaml.Node, path string, known ...string) []string {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	var paths []string
next:
	for i := 0; i+1 < len(n.Content); i += 2 {
		for _, k := range known {
			if n.Content[i].Value == k {
				continue next
			}
		}
		if !isNull(n.Content[i+1]) {
			paths = append(paths, path+"."+n.Content[i].Value)
		}
	}
	return paths
}
