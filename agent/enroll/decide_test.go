package enroll

import (
	"testing"

	"github.com/culvert-mesh/culvert/agent/source"
)

func TestDecide(t *testing.T) {
	ambient := map[string]string{"istio.io/dataplane-mode": "ambient"}
	injected := map[string]string{"istio-injection": "enabled"}
	for _, tc := range []struct {
		name      string
		namespace map[string]string
		pod       source.Pod
		noSwitch  bool
		enrolled  bool
		reason    string
		refused   bool
	}{
		{name: "nobody asks", reason: "neither namespace nor pod asks for it"},
		{name: "namespace ambient", namespace: ambient, enrolled: true, reason: "namespace label istio.io/dataplane-mode=ambient"},
		{name: "namespace injection", namespace: injected, enrolled: true, reason: "namespace label istio-injection=enabled"},
		{name: "injection switched off", namespace: injected, noSwitch: true, reason: "neither namespace nor pod asks for it"},
		{name: "injection disabled", namespace: map[string]string{"istio-injection": "disabled"}, reason: "neither namespace nor pod asks for it"},
		{name: "pod ambient", pod: source.Pod{Labels: ambient}, enrolled: true, reason: "pod label istio.io/dataplane-mode=ambient"},
		{name: "pod ambient where injection is disabled", namespace: map[string]string{"istio-injection": "disabled"},
			pod: source.Pod{Labels: ambient}, enrolled: true, reason: "pod label istio.io/dataplane-mode=ambient"},
		{name: "namespace none does not opt out a pod", namespace: map[string]string{"istio.io/dataplane-mode": "none"},
			pod: source.Pod{Labels: ambient}, enrolled: true, reason: "pod label istio.io/dataplane-mode=ambient"},
		{name: "pod none", namespace: ambient, pod: source.Pod{Labels: map[string]string{"istio.io/dataplane-mode": "none"}},
			reason: "opted out by pod label istio.io/dataplane-mode=none"},
		{name: "inject label", namespace: injected, pod: source.Pod{Labels: map[string]string{"sidecar.istio.io/inject": "false"}},
			reason: "opted out by pod label sidecar.istio.io/inject=false"},
		{name: "inject annotation", namespace: ambient, pod: source.Pod{Annotations: map[string]string{"sidecar.istio.io/inject": "false"}},
			reason: "opted out by pod annotation sidecar.istio.io/inject=false"},
		{name: "inject true does not enrol", pod: source.Pod{Labels: map[string]string{"sidecar.istio.io/inject": "true"}},
			reason: "neither namespace nor pod asks for it"},
		{name: "host network", namespace: ambient, pod: source.Pod{HostNetwork: true, Labels: ambient}, reason: "hostNetwork", refused: true},
		{name: "host network that nobody asks for", pod: source.Pod{HostNetwork: true}, reason: "hostNetwork"},
		{name: "sidecar", namespace: ambient, pod: source.Pod{Containers: []string{"app", "istio-proxy"}},
			reason: "has an istio-proxy container", refused: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := Decide(&source.Namespace{Name: "n", Labels: tc.namespace}, &tc.pod, Options{InjectionLabel: !tc.noSwitch})
			if want := (Decision{tc.enrolled, tc.reason, tc.refused}); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

func TestDecideWithoutNamespace(t *testing.T) {
	if d := Decide(nil, &source.Pod{}, Options{InjectionLabel: true}); d.Enrolled {
		t.Errorf("enrolled: %s", d.Reason)
	}
}
