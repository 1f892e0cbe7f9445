package kube

import (
	"maps"
	"strings"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/culvert-mesh/culvert/agent/source"
)

// convertNamespace keeps of the annotations those that a mesh may read; the others change for reasons of their own.
func convertNamespace(o runtime.Object) any {
	k, ok := o.(*core.Namespace)
	if !ok {
		return nil
	}
	n := &source.Namespace{Name: k.Name, Labels: maps.Clone(k.Labels)}
	for key, v := range k.Annotations {
		domain, _, _ := strings.Cut(key, "/")
		if domain != "culvert.dev" && domain != "istio.io" && !strings.HasSuffix(domain, ".istio.io") {
			continue
		}
		if n.Annotations == nil {
			n.Annotations = map[string]string{}
		}
		n.Annotations[key] = v
	}
	return n
}

// namespaceTable puts namespaces into the index.
type namespaceTable struct{ index *source.Index }

func (t namespaceTable) set(_ objectKey, v any) { t.index.SetNamespace(v.(*source.Namespace)) }

func (t namespaceTable) remove(k objectKey) { t.index.DeleteNamespace(k.name) }
