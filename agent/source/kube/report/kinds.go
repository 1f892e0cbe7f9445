package report

import (
	"slices"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
)

// policyKind is a kind of policy whose status is written, and where the API serves it.
type policyKind struct {
	kind, group, plural string
	versions            []string // the best first
}

func policyKinds() []policyKind {
	return []policyKind{
		{"PeerAuthentication", "security.istio.io", "peerauthentications", []string{"v1", "v1beta1"}},
		{"DestinationRule", "networking.istio.io", "destinationrules", []string{"v1", "v1beta1", "v1alpha3"}},
	}
}

// served is where a kind is served, as discovery told.
type served struct {
	gvr       schema.GroupVersionResource
	hasStatus bool // without the subresource a status would be part of the object, and a new generation of it
}

// discover returns where the kind is served; ok is false when it is not, or nobody can tell.
func discover(d discovery.DiscoveryInterface, k policyKind) (s served, ok bool) {
	for _, version := range k.versions {
		gv := schema.GroupVersion{Group: k.group, Version: version}
		list, err := d.ServerResourcesForGroupVersion(gv.String())
		if err != nil {
			continue
		}
		var names []string
		for _, r := range list.APIResources {
			names = append(names, r.Name)
		}
		if slices.Contains(names, k.plural) {
			return served{gv.WithResource(k.plural), slices.Contains(names, k.plural+"/status")}, true
		}
	}
	return served{}, false
}

// permission names what a ServiceAccount must be allowed to do.
func (k policyKind) permission(verb, subresource string) string {
	return verb + " " + k.plural + "." + k.group + subresource
}
