package kube

import (
	"cmp"
	"errors"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
)

// objectKey names an object among those of its resource.
type objectKey struct{ namespace, name string }

func (k objectKey) String() string {
	if k.namespace == "" {
		return k.name
	}
	return k.namespace + "/" + k.name
}

func compareKeys(a, b objectKey) int {
	return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name))
}

// record is what is kept of one object. It looks enough like an object for the reflector to handle it.
type record struct {
	key     objectKey
	version string
	value   any // nil: the object counts as one that is not there
}

var (
	_ runtime.Object            = (*record)(nil)
	_ metav1.ObjectMetaAccessor = (*record)(nil)
)

// GetObjectKind tells nothing: a record has no kind.
func (r *record) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject returns the record itself, which is never changed.
func (r *record) DeepCopyObject() runtime.Object { return r }

// GetObjectMeta makes up the metadata that the reflector asks for.
func (r *record) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Namespace: r.key.namespace, Name: r.key.name, ResourceVersion: r.version}
}

// recordList is a list, or a page of one.
type recordList struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []runtime.Object
}

// DeepCopyObject returns the list itself, which is never changed.
func (l *recordList) DeepCopyObject() runtime.Object { return l }

// converter returns what is kept of an object, or nil when it counts as not there.
type converter func(runtime.Object) any

func newRecord(o runtime.Object, convert converter) (*record, error) {
	m, err := meta.Accessor(o)
	if err != nil {
		return nil, err
	}
	r := &record{key: objectKey{m.GetNamespace(), m.GetName()}, version: m.GetResourceVersion()}
	if convert != nil {
		r.value = convert(o)
	}
	return r, nil
}

func newRecordList(list runtime.Object, convert converter) (*recordList, error) {
	m, err := meta.ListAccessor(list)
	if err != nil {
		return nil, err
	}
	if m.GetResourceVersion() == "" {
		return nil, errors.New("a list without a version") // no API server gives one: it is something else, cut to look like one
	}
	records := &recordList{ListMeta: metav1.ListMeta{
		ResourceVersion: m.GetResourceVersion(), Continue: m.GetContinue(), RemainingItemCount: m.GetRemainingItemCount(),
	}}
	err = meta.EachListItem(list, func(o runtime.Object) error {
		r, err := newRecord(o, convert)
		if err == nil {
			records.Items = append(records.Items, r)
		}
		return err
	})
	return records, err
}

// newEvent turns a watch's event into one about a record. Errors and bookmarks stay as they are.
func newEvent(e watch.Event, convert converter) (watch.Event, error) {
	switch e.Type {
	case watch.Added, watch.Modified:
	case watch.Deleted:
		convert = nil
	default:
		return e, nil
	}
	r, err := newRecord(e.Object, convert)
	if err != nil {
		return e, err
	}
	e.Object = r
	return e, nil
}
