package kube

import (
	"errors"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/agent/source/istio"
	"github.com/culvert-mesh/culvert/policy"
)

// parsed is an Istio object: what it says, or why it says nothing.
type parsed[T any] struct {
	uid        string
	generation int64
	good       *T
	err        error
	instead    *T // of a bad one that has no good version; may be nil
}

func convertPolicy(o runtime.Object) any {
	return convertIstio(o, istio.PeerAuthentication)
}

func convertRule(o runtime.Object) any {
	p := convertIstio(o, func(m istio.Meta, spec any) (*policy.DestinationRule, []istio.FieldError) {
		return istio.DestinationRule(m, spec, true)
	})
	if u, ok := o.(*unstructured.Unstructured); ok && p.err != nil {
		p.instead = refusal(u)
	}
	return p
}

// refusal stands for a rule that cannot be used, and refuses connections to its host: it may have asked for mutual TLS,
// which never falls back to plaintext. Where the host cannot be read there is none. What cannot be read of whom the
// rule is for does not narrow it.
func refusal(u *unstructured.Unstructured) *policy.DestinationRule {
	host, _, _ := unstructured.NestedString(u.Object, "spec", "host")
	if host == "" {
		return nil
	}
	exportTo, _, _ := unstructured.NestedStringSlice(u.Object, "spec", "exportTo")
	selector, _, _ := unstructured.NestedStringMap(u.Object, "spec", "workloadSelector", "matchLabels")
	return &policy.DestinationRule{
		Namespace: u.GetNamespace(), Name: u.GetName(), Created: u.GetCreationTimestamp().Time,
		Host: host, ExportTo: exportTo, Selector: selector, TLS: &policy.ClientTLS{Mode: unreadableTLS},
	}
}

// unreadableTLS is no mode of the API: clients refuse what they cannot originate.
const unreadableTLS = policy.TLSMode(255)

// convertIstio judges each object by itself, so that a bad one costs no other.
func convertIstio[T any](o runtime.Object, read func(istio.Meta, any) (*T, []istio.FieldError)) parsed[T] {
	u, ok := o.(*unstructured.Unstructured)
	if !ok {
		return parsed[T]{err: errors.New("not an object")}
	}
	m := istio.Meta{Namespace: u.GetNamespace(), Name: u.GetName(), Created: u.GetCreationTimestamp().Time}
	good, errs := read(m, u.Object["spec"])
	return parsed[T]{uid: string(u.GetUID()), generation: u.GetGeneration(), good: good, err: istio.Join(errs)}
}

// entry is what is in force for one object. The last good version stays while a newer one cannot be used.
type entry[T any] struct {
	uid        string
	generation int64
	good       *T
	err        error
	instead    *T
}

// inForce is what the index is given.
func (e entry[T]) inForce() *T {
	if e.good == nil {
		return e.instead
	}
	return e.good
}

// istioTable keeps the objects of one Istio kind by namespace.
type istioTable[T any] struct {
	kind     string
	give     func(namespace string, all []T) // to the index
	objects  map[string]map[string]entry[T]
	changed  map[string]struct{} // namespaces
	problems map[objectKey]struct{}
	dirty    bool           // problems changed
	untold   bool           // anything did
	ignored  func(*T) error // nil: nothing is
}

func newIstioTable[T any](kind string, give func(string, []T)) *istioTable[T] {
	return &istioTable[T]{
		kind: kind, give: give,
		objects: map[string]map[string]entry[T]{}, changed: map[string]struct{}{}, problems: map[objectKey]struct{}{},
	}
}

func (t *istioTable[T]) set(k objectKey, v any) {
	now := v.(parsed[T])
	was, known := t.objects[k.namespace][k.name]
	e := entry[T](now)
	if now.err != nil && known && was.uid == now.uid {
		e.good = was.good
	}
	if t.objects[k.namespace] == nil {
		t.objects[k.namespace] = map[string]entry[T]{}
	}
	t.objects[k.namespace][k.name] = e
	t.untold = true
	if e.inForce() != was.inForce() {
		t.changed[k.namespace] = struct{}{}
	}
	if e.err != nil {
		t.problems[k] = struct{}{}
		t.dirty = true
	} else {
		t.solved(k)
	}
}

func (t *istioTable[T]) remove(k objectKey) {
	all := t.objects[k.namespace]
	if was, known := all[k.name]; !known {
		return
	} else if was.inForce() != nil {
		t.changed[k.namespace] = struct{}{}
	}
	delete(all, k.name)
	t.untold = true
	if len(all) == 0 {
		delete(t.objects, k.namespace)
	}
	t.solved(k)
}

func (t *istioTable[T]) solved(k objectKey) {
	if _, had := t.problems[k]; had {
		delete(t.problems, k)
		t.dirty = true
	}
}

// flush brings the index up to date and reports whether the problems changed.
func (t *istioTable[T]) flush() bool {
	for namespace := range t.changed {
		objects := t.objects[namespace]
		var all []T
		for _, name := range slices.Sorted(maps.Keys(objects)) {
			if v := objects[name].inForce(); v != nil {
				all = append(all, *v)
			}
		}
		t.give(namespace, all)
	}
	clear(t.changed)
	dirty := t.dirty
	t.dirty = false
	return dirty
}

// list returns the problems, and the namespaces where an object has no version that can be used.
func (t *istioTable[T]) list() (problems []source.Problem, unreadable []string) {
	for _, k := range slices.SortedFunc(maps.Keys(t.problems), compareKeys) {
		e := t.objects[k.namespace][k.name]
		problems = append(problems, source.Problem{Object: t.kind + " " + k.String(), Err: e.err})
		if e.good == nil {
			unreadable = append(unreadable, k.namespace)
		}
	}
	return problems, slices.Compact(unreadable)
}
