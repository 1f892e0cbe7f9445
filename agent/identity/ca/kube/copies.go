package kube

import (
	"context"
	"crypto/sha256"
	"sync"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
)

// copies is what is known of namespaces and of the bundle's ConfigMap in each: its hash, and nothing of anything else.
type copies struct {
	changed func(namespace string)

	mu         sync.Mutex
	namespaces map[string]bool   // those that live
	maps       map[string]copied // by namespace
	mapsKnown  bool
}

type copied struct {
	exists  bool
	version string
	sum     [sha256.Size]byte
}

func newCopies(changed func(namespace string)) *copies {
	return &copies{changed: changed, namespaces: map[string]bool{}, maps: map[string]copied{}}
}

// wants returns the ConfigMap in the namespace, and whether it is to be written.
func (c *copies) wants(namespace, bundle string) (got copied, wanted bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	got = c.maps[namespace]
	return got, c.mapsKnown && c.namespaces[namespace] && got.sum != sum(bundle)
}

func (c *copies) holds(namespace, bundle string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.maps[namespace].sum == sum(bundle)
}

// count returns how many namespaces have the bundle and how many have not.
func (c *copies) count(bundle string) (current, pending int) {
	want := sum(bundle)
	c.mu.Lock()
	defer c.mu.Unlock()
	for namespace := range c.namespaces {
		if c.maps[namespace].sum == want {
			current++
		} else {
			pending++
		}
	}
	return current, pending
}

// all calls f for all namespaces.
func (c *copies) all(f func(namespace string)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for namespace := range c.namespaces {
		f(namespace)
	}
}

// reflected is a reflector's store that passes on what it is told.
type reflected struct {
	copies  *copies
	set     func(obj any) (namespace string)
	delete  func(obj any) (namespace string)
	replace func()
	trim    cache.TransformFunc
}

// Add implements cache.ReflectorStore.
func (r reflected) Add(obj any) error { return r.Update(obj) }

// Update implements cache.ReflectorStore.
func (r reflected) Update(obj any) error {
	r.copies.mu.Lock()
	namespace := r.set(obj)
	r.copies.mu.Unlock()
	r.copies.changed(namespace)
	return nil
}

// Delete implements cache.ReflectorStore.
func (r reflected) Delete(obj any) error {
	r.copies.mu.Lock()
	namespace := r.delete(obj)
	r.copies.mu.Unlock()
	r.copies.changed(namespace)
	return nil
}

// Replace implements cache.ReflectorStore.
func (r reflected) Replace(all []any, _ string) error {
	r.copies.mu.Lock()
	r.replace()
	for _, obj := range all {
		r.set(obj)
	}
	r.copies.mu.Unlock()
	r.copies.all(r.copies.changed)
	return nil
}

// Resync implements cache.ReflectorStore.
func (r reflected) Resync() error { return nil }

// Transformer implements cache.TransformingStore: a list in the making holds no more than what is needed.
func (r reflected) Transformer() cache.TransformFunc { return r.trim }

func watchNamespaces(ctx context.Context, client kubernetes.Interface, c *copies) {
	namespaces := client.CoreV1().Namespaces()
	source := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o meta.ListOptions) (runtime.Object, error) {
			return namespaces.List(ctx, o)
		},
		WatchFuncWithContext: namespaces.Watch,
	}
	reflect(ctx, client, source, &core.Namespace{}, reflected{
		copies: c,
		set: func(obj any) string {
			n, ok := obj.(*core.Namespace)
			switch {
			case !ok:
				return ""
			case n.DeletionTimestamp != nil || n.Status.Phase == core.NamespaceTerminating:
				delete(c.namespaces, n.Name)
			default:
				c.namespaces[n.Name] = true
			}
			return n.Name
		},
		delete: func(obj any) string {
			n, ok := obj.(*core.Namespace)
			if !ok {
				return ""
			}
			delete(c.namespaces, n.Name)
			return n.Name
		},
		replace: func() { clear(c.namespaces) },
		trim: func(obj any) (any, error) {
			if n, ok := obj.(*core.Namespace); ok {
				n.ManagedFields, n.Labels = nil, nil
			}
			return obj, nil
		},
	})
}

func watchCopies(ctx context.Context, client kubernetes.Interface, c *copies) {
	// The selector by name lets RBAC grant list and watch for objects of this name only.
	selector := fields.OneTermEqualSelector(meta.ObjectNameField, ConfigMapName).String()
	everywhere := client.CoreV1().ConfigMaps(meta.NamespaceAll)
	source := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o meta.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector
			return everywhere.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o meta.ListOptions) (watch.Interface, error) {
			o.FieldSelector = selector
			return everywhere.Watch(ctx, o)
		},
	}
	reflect(ctx, client, source, &core.ConfigMap{}, reflected{
		copies: c,
		set: func(obj any) string {
			m, ok := obj.(*core.ConfigMap)
			if !ok || m.Name != ConfigMapName {
				return ""
			}
			c.maps[m.Namespace] = copied{true, m.ResourceVersion, sum(m.Data[ca.RootsName])}
			return m.Namespace
		},
		delete: func(obj any) string {
			m, ok := obj.(*core.ConfigMap)
			if !ok || m.Name != ConfigMapName {
				return ""
			}
			delete(c.maps, m.Namespace)
			return m.Namespace
		},
		replace: func() { clear(c.maps); c.mapsKnown = true },
		trim: func(obj any) (any, error) {
			if m, ok := obj.(*core.ConfigMap); ok {
				m.ManagedFields, m.Labels, m.BinaryData = nil, nil, nil
				m.Data = map[string]string{ca.RootsName: m.Data[ca.RootsName]}
			}
			return obj, nil
		},
	})
}

func reflect(ctx context.Context, client kubernetes.Interface, source *cache.ListWatch, example runtime.Object, store reflected) {
	r := cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(source, client), example, store,
		cache.ReflectorOptions{Name: "bundle"})
	r.WatchListPageSize = pageSize
	r.RunWithContext(ctx)
}
