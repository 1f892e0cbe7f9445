package istio

import (
	"strconv"

	security "istio.io/api/security/v1beta1"

	"github.com/culvert-mesh/culvert/policy"
)

// PeerAuthentication reads a spec of security.istio.io's v1 or v1beta1, which are the same. A field that is not
// understood makes the whole object unusable: it may have been what narrows it.
func PeerAuthentication(meta Meta, spec any) (*policy.PeerAuthentication, []FieldError) {
	var pa security.PeerAuthentication
	if _, errs := readSpec(spec, &pa, false); len(errs) > 0 {
		return nil, errs
	}
	p := &policy.PeerAuthentication{
		Namespace: meta.Namespace, Name: meta.Name, Created: meta.Created,
		SelectorPresent: pa.GetSelector() != nil,
		Selector:        pa.GetSelector().GetMatchLabels(),
	}
	var err error
	if p.Mode, err = policy.ParseMode(pa.GetMtls().GetMode().String()); err != nil {
		return nil, []FieldError{{"spec.mtls.mode", err}}
	}
	if at(spec, "portLevelMtls") != nil {
		p.Ports = make(map[uint16]policy.Mode, len(pa.GetPortLevelMtls()))
	}
	for port, mtls := range pa.GetPortLevelMtls() {
		mode, err := policy.ParseMode(mtls.GetMode().String())
		if err != nil {
			return nil, []FieldError{{"spec.portLevelMtls[" + strconv.Itoa(int(port)) + "]", err}}
		}
		p.Ports[uint16(port)] = mode
	}
	if errs := refused(policy.Validate(*p)); len(errs) > 0 {
		return nil, errs
	}
	return p, nil
}
