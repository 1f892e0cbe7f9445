package kube

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/agent/source/kube/apitest"
)

// eventually is how long a test waits for what must come.
const eventually = 10 * time.Second

func quickPace() *pace {
	return &pace{
		first: 50 * time.Millisecond, most: 400 * time.Millisecond, steady: time.Minute,
		absent: 300 * time.Millisecond, confirm: 50 * time.Millisecond, distrust: time.Minute,
		ask: 500 * time.Millisecond, poll: 50 * time.Millisecond, settle: 300 * time.Millisecond, limit: time.Second,
	}
}

// view collects what a source publishes.
type view struct {
	mu        sync.Mutex
	last      *source.Snapshot
	published int
	changed   chan struct{}
}

func newView() *view { return &view{changed: make(chan struct{}, 1)} }

func (v *view) publish(s *source.Snapshot) {
	v.mu.Lock()
	v.last = s
	v.published++
	v.mu.Unlock()
	select {
	case v.changed <- struct{}{}:
	default:
	}
}

func (v *view) snapshot() *source.Snapshot {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.last
}

func (v *view) count() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.published
}

// wait waits until the last snapshot is as wanted.
func (v *view) wait(t *testing.T, what string, ok func(*source.Snapshot) bool) *source.Snapshot {
	t.Helper()
	deadline := time.After(eventually)
	for {
		if s := v.snapshot(); s != nil && ok(s) {
			return s
		}
		select {
		case <-v.changed:
		case <-deadline:
			t.Fatalf("not in time: %s; last %+v", what, v.snapshot())
		}
	}
}

// steady fails if the last snapshot stops being as wanted within the time.
func (v *view) steady(t *testing.T, what string, d time.Duration, ok func(*source.Snapshot) bool) {
	t.Helper()
	deadline := time.After(d)
	for {
		if s := v.snapshot(); s == nil || !ok(s) {
			t.Fatalf("does not last: %s", what)
		}
		select {
		case <-v.changed:
		case <-deadline:
			return
		}
	}
}

// start runs a source until the test ends.
func start(t *testing.T, o Options) (*Source, *view) {
	t.Helper()
	if o.Node == "" {
		o.Node = "here"
	}
	if o.pace == nil {
		o.pace = quickPace()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	v := newView()
	go func() { ended <- s.Run(ctx, v.publish) }()
	var own sync.WaitGroup
	own.Go(func() { s.WatchUninstall(ctx) })
	t.Cleanup(func() {
		cancel()
		own.Wait()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(eventually):
			t.Error("Run does not end")
		}
	})
	return s, v
}

// applier writes objects as YAML.
type applier struct {
	t      *testing.T
	client dynamic.Interface
}

func newApplier(t *testing.T, s *apitest.Server) *applier {
	t.Helper()
	c, err := dynamic.NewForConfig(s.Config(""))
	if err != nil {
		t.Fatal(err)
	}
	return &applier{t, c}
}

func (a *applier) resource(o *unstructured.Unstructured) dynamic.ResourceInterface {
	gvk := o.GroupVersionKind()
	plural := strings.ToLower(gvk.Kind) + "s"
	r := a.client.Resource(schema.GroupVersionResource{Group: gvk.Group, Version: gvk.Version, Resource: plural})
	if o.GetNamespace() == "" {
		return r
	}
	return r.Namespace(o.GetNamespace())
}

// each calls f with the objects of a YAML text.
func (a *applier) each(text string, f func(dynamic.ResourceInterface, *unstructured.Unstructured) error) {
	a.t.Helper()
	for _, document := range strings.Split(text, "\n---\n") {
		var o unstructured.Unstructured
		if err := yaml.Unmarshal([]byte(document), &o.Object); err != nil {
			a.t.Fatal(err)
		}
		// A new CRD, or a server that has just started, may need a moment; one that was deleted and is made anew on a busy
		// machine took longer than five seconds.
		var err error
		for range 600 {
			if err = f(a.resource(&o), &o); err == nil {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if err != nil {
			a.t.Fatalf("%s %s: %v", o.GetKind(), o.GetName(), err)
		}
	}
}

func (a *applier) apply(text string) {
	a.t.Helper()
	a.each(text, func(r dynamic.ResourceInterface, o *unstructured.Unstructured) error {
		_, err := r.Apply(context.Background(), o.GetName(), o, metav1.ApplyOptions{FieldManager: "test", Force: true})
		if err == nil && o.Object["status"] != nil {
			_, err = r.ApplyStatus(context.Background(), o.GetName(), o, metav1.ApplyOptions{FieldManager: "test", Force: true})
		}
		return err
	})
}

func (a *applier) delete(text string) {
	a.t.Helper()
	zero := int64(0)
	a.each(text, func(r dynamic.ResourceInterface, o *unstructured.Unstructured) error {
		return r.Delete(context.Background(), o.GetName(), metav1.DeleteOptions{GracePeriodSeconds: &zero})
	})
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
