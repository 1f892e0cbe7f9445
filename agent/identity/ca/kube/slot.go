package kube

import (
	"context"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// slot is the store of a reflector that watches a single object.
type slot struct {
	name    string
	changed chan struct{} // holds one element if the object changed since it was last received from

	mu     sync.Mutex
	object runtime.Object
	known  bool // whether there is one, or that there is none
}

func newSlot(name string) *slot { return &slot{name: name, changed: make(chan struct{}, 1)} }

// get returns the object, nil if there is none; known is false as long as nobody can say.
func (s *slot) get() (_ runtime.Object, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.object, s.known
}

func (s *slot) set(o runtime.Object) {
	s.mu.Lock()
	s.object, s.known = o, true
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// holds returns obj if it is the object that the slot is for.
func (s *slot) holds(obj any) (runtime.Object, bool) {
	o, ok := obj.(runtime.Object)
	if !ok {
		return nil, false
	}
	accessor, err := meta.Accessor(o)
	return o, err == nil && accessor.GetName() == s.name
}

// Add implements cache.ReflectorStore.
func (s *slot) Add(obj any) error { return s.Update(obj) }

// Update implements cache.ReflectorStore.
func (s *slot) Update(obj any) error {
	if o, ok := s.holds(obj); ok {
		s.set(o)
	}
	return nil
}

// Delete implements cache.ReflectorStore.
func (s *slot) Delete(obj any) error {
	if _, ok := s.holds(obj); ok {
		s.set(nil)
	}
	return nil
}

// Replace implements cache.ReflectorStore.
func (s *slot) Replace(all []any, _ string) error {
	for _, obj := range all {
		if o, ok := s.holds(obj); ok {
			s.set(o)
			return nil
		}
	}
	s.set(nil)
	return nil
}

// Resync implements cache.ReflectorStore.
func (s *slot) Resync() error { return nil }

// watch keeps the slot up to date until ctx ends. The selector by name lets RBAC grant list and watch for this
// one object.
func (s *slot) watch(ctx context.Context, client kubernetes.Interface, source *cache.ListWatch, example runtime.Object) {
	list, follow := source.ListWithContextFunc, source.WatchFuncWithContext
	selector := fields.OneTermEqualSelector(metav1.ObjectNameField, s.name).String()
	source.ListWithContextFunc = func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		o.FieldSelector = selector
		return list(ctx, o)
	}
	source.WatchFuncWithContext = func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		o.FieldSelector = selector
		return follow(ctx, o)
	}
	cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(source, client), example, s,
		cache.ReflectorOptions{Name: s.name}).RunWithContext(ctx)
}
