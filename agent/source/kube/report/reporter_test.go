package report

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/culvert-mesh/culvert/agent/source"
)

// buffer is a log that can be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func apiPod(name, uid string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: name, UID: types.UID(uid)}}
}

func localPod(name, uid string, r source.Redirection) *source.Pod {
	return &source.Pod{Namespace: "n", Name: name, UID: uid, Redirection: r}
}

// running starts a Reporter that ends with the test.
func running(t *testing.T, o Options) *Reporter {
	t.Helper()
	r := New(o)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(15 * time.Second):
			t.Error("the Reporter does not end")
		}
	})
	return r
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not after 20 s: %s", what)
		}
	}
}

func annotated(t *testing.T, c *fake.Clientset, name string) bool {
	t.Helper()
	pod, err := c.CoreV1().Pods("n").Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pod.Annotations[source.RedirectionAnnotation] == source.RedirectionValue
}

// patches are those of pods that the client was asked for.
func patches(c *fake.Clientset) (all []clienttesting.PatchAction) {
	for _, a := range c.Actions() {
		if p, ok := a.(clienttesting.PatchAction); ok && a.GetResource().Resource == "pods" {
			all = append(all, p)
		}
	}
	return all
}

func events(t *testing.T, c *fake.Clientset) (all []string) {
	t.Helper()
	list, err := c.CoreV1().Events("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list.Items {
		all = append(all, fmt.Sprintf("%s %s %s/%s", e.Type, e.Reason, e.InvolvedObject.Kind, e.InvolvedObject.Name))
	}
	return all
}

func TestAnnotationFollowsTheWish(t *testing.T) {
	c := fake.NewClientset(apiPod("p", "u"))
	r := running(t, Options{Client: c, Node: "node"})
	r.Enrolled(localPod("p", "u", source.RedirectionAbsent))
	eventually(t, "annotation", func() bool { return annotated(t, c, "p") })
	first := patches(c)[0]
	if first.GetSubresource() != "status" {
		t.Errorf("patched %q, want the status alone", first.GetSubresource())
	}
	var body struct {
		Metadata struct {
			UID             string
			ResourceVersion *string
		}
	}
	if err := json.Unmarshal(first.GetPatch(), &body); err != nil || body.Metadata.UID != "u" || body.Metadata.ResourceVersion != nil {
		t.Errorf("patch %s: want the UID and no resource version", first.GetPatch())
	}
	r.NotEnrolled(localPod("p", "u", source.RedirectionEnabled), "its namespace is not known")
	eventually(t, "no annotation", func() bool { return !annotated(t, c, "p") })
	eventually(t, "two events", func() bool { return len(events(t, c)) == 2 })
	got := strings.Join(events(t, c), ", ")
	for _, want := range []string{"Normal Enrolled Pod/p", "Warning NotEnrolled Pod/p"} {
		if !strings.Contains(got, want) {
			t.Errorf("events %s: no %q", got, want)
		}
	}
}

func TestNothingIsWrittenWhereNothingChanges(t *testing.T) {
	c := fake.NewClientset(apiPod("p", "u"), apiPod("q", "v"))
	r := running(t, Options{Client: c, Node: "node"})
	for range 100 {
		r.Enrolled(localPod("p", "u", source.RedirectionEnabled)) // by this agent's predecessor
		r.Unenrolled(localPod("q", "v", source.RedirectionAbsent))
		r.Enrolled(&source.Pod{Namespace: "n", Name: "file"})
	}
	time.Sleep(200 * time.Millisecond)
	if len(c.Actions()) != 0 {
		t.Errorf("asked the API server: %v", c.Actions())
	}
}

// A stale annotation is found at start: the pod carries it and is not enrolled.
func TestStaleAnnotationIsRemoved(t *testing.T) {
	pod := apiPod("p", "u")
	pod.Annotations = map[string]string{source.RedirectionAnnotation: source.RedirectionValue, "other": "stays"}
	c := fake.NewClientset(pod)
	r := running(t, Options{Client: c, Node: "node"})
	for range 3 {
		r.Unenrolled(localPod("p", "u", source.RedirectionEnabled))
	}
	eventually(t, "no annotation", func() bool { return !annotated(t, c, "p") })
	eventually(t, "nothing pending", func() bool { return r.Stats().Pending == 0 })
	if n := len(patches(c)); n != 1 {
		t.Errorf("%d patches, want 1", n)
	}
	if got, _ := c.CoreV1().Pods("n").Get(t.Context(), "p", metav1.GetOptions{}); got.Annotations["other"] != "stays" {
		t.Errorf("annotations %v", got.Annotations)
	}
	if len(events(t, c)) != 0 {
		t.Errorf("events %v", events(t, c))
	}
}

// Ten times a second for five seconds: few writes, few Events, and the last wish stands.
func TestFlappingIsBounded(t *testing.T) {
	c := fake.NewClientset(apiPod("p", "u"))
	r := running(t, Options{Client: c, Node: "node"})
	for i := range 50 {
		r.Enrolled(localPod("p", "u", source.RedirectionAbsent))
		time.Sleep(50 * time.Millisecond)
		r.NotEnrolled(localPod("p", "u", source.RedirectionEnabled), fmt.Sprint("reason ", i))
		time.Sleep(50 * time.Millisecond)
	}
	r.Enrolled(localPod("p", "u", source.RedirectionAbsent))
	eventually(t, "annotation", func() bool { return annotated(t, c, "p") })
	eventually(t, "nothing pending", func() bool { return r.Stats().Pending == 0 })
	stats := r.Stats()
	if n := len(patches(c)); n > podBurst+4 {
		t.Errorf("%d patches of one pod, want at most %d", n, podBurst+4)
	}
	if stats.Events > 2*objectBurst+2 || stats.EventsDropped == 0 {
		t.Errorf("%d Events of one pod written, %d dropped; want at most %d written", stats.Events, stats.EventsDropped, 2*objectBurst+2)
	}
	t.Logf("100 changes: %d patches, %d Events written, %d dropped", len(patches(c)), stats.Events, stats.EventsDropped)
}

// Somebody else removes the annotation of an enrolled pod right after it was written.
func TestAlteredAnnotationIsRepaired(t *testing.T) {
	c := fake.NewClientset(apiPod("p", "u"))
	r := running(t, Options{Client: c, Node: "node"})
	r.Enrolled(localPod("p", "u", source.RedirectionAbsent))
	eventually(t, "annotation", func() bool { return annotated(t, c, "p") })
	if _, err := c.CoreV1().Pods("n").Update(t.Context(), apiPod("p", "u"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.Enrolled(localPod("p", "u", source.RedirectionAbsent))
	eventually(t, "annotation again", func() bool { return annotated(t, c, "p") })
}

func TestFailuresAreTriedAgain(t *testing.T) {
	c := fake.NewClientset(apiPod("p", "u"))
	var mu sync.Mutex
	left := 3
	c.PrependReactor("patch", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		if left--; left >= 0 {
			return true, nil, apierrors.NewForbidden(corev1.Resource("pods"), "p", errors.New("no"))
		}
		return false, nil, nil
	})
	var log buffer
	r := running(t, Options{Client: c, Node: "node", Logger: slog.New(slog.NewTextHandler(&log, nil))})
	r.Enrolled(localPod("p", "u", source.RedirectionAbsent))
	eventually(t, "annotation", func() bool { return annotated(t, c, "p") })
	eventually(t, "a word that it works again", func() bool { return strings.Contains(log.String(), "works again") })
	if n := strings.Count(log.String(), "lacks the permission to patch pods/status"); n != 1 {
		t.Errorf("the missing permission is named %d times, want once:\n%s", n, log.String())
	}
	if r.Stats().Failures != 3 {
		t.Errorf("%d failures, want 3", r.Stats().Failures)
	}
}

func TestPodThatIsGoneIsForgotten(t *testing.T) {
	c := fake.NewClientset()
	r := running(t, Options{Client: c, Node: "node"})
	r.Unenrolled(localPod("p", "u", source.RedirectionEnabled))
	eventually(t, "one patch, forgotten", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.pods) == 0
	})
	if n := len(patches(c)); n != 1 {
		t.Errorf("%d patches, want 1", n)
	}
}

func TestRoomForPodsIsBounded(t *testing.T) {
	r := New(Options{Client: fake.NewClientset(), Node: "node"})
	defer r.queue.ShutDown()
	for i := range maxPods + 10 {
		r.Unenrolled(localPod(fmt.Sprint("p", i), fmt.Sprint("u", i), source.RedirectionAbsent))
	}
	if n := r.Stats().PodsDropped; n != 0 {
		t.Errorf("%d pods dropped although nothing was to be done for any", n)
	}
	for i := range maxPods + 10 {
		r.Enrolled(localPod(fmt.Sprint("q", i), fmt.Sprint("v", i), source.RedirectionAbsent))
	}
	if n := r.Stats().PodsDropped; n == 0 || n > 50 {
		t.Errorf("%d pods dropped", n)
	}
	if n := r.Stats().EventsDropped; n == 0 {
		t.Error("no Event dropped although nobody writes them")
	}
}

func TestRemoveAll(t *testing.T) {
	c := fake.NewClientset()
	var pods []*source.Pod
	for i := range 200 {
		name := fmt.Sprint("p", i)
		if i != 7 { // one is gone
			if err := c.Tracker().Add(apiPod(name, name)); err != nil {
				t.Fatal(err)
			}
		}
		pods = append(pods, localPod(name, name, source.RedirectionEnabled))
	}
	var mu sync.Mutex
	running, most, refused := 0, 0, 0
	c.PrependReactor("patch", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		running++
		most = max(most, running)
		fail := refused < 5
		if fail {
			refused++
		}
		mu.Unlock()
		mu.Lock()
		running--
		mu.Unlock()
		if fail {
			return true, nil, apierrors.NewInternalError(errors.New("try again"))
		}
		return false, nil, nil
	})
	r := New(Options{Client: c, Node: "node"})
	defer r.queue.ShutDown()
	if err := r.RemoveAll(t.Context(), pods); err != nil {
		t.Error(err)
	}
	if most > removers {
		t.Errorf("%d at a time, want at most %d", most, removers)
	}
	// From now on nothing is put on again.
	r.Enrolled(localPod("p1", "p1", source.RedirectionAbsent))
	if r.Stats().Pending != 0 {
		t.Error("a wish was accepted after RemoveAll")
	}
}

func TestRemoveAllGivesUpWithItsPermission(t *testing.T) {
	c := fake.NewClientset()
	c.PrependReactor("patch", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(corev1.Resource("pods"), "p", errors.New("the role is gone"))
	})
	var pods []*source.Pod
	for i := range 500 {
		pods = append(pods, localPod(fmt.Sprint("p", i), fmt.Sprint("u", i), source.RedirectionEnabled))
	}
	r := New(Options{Client: c, Node: "node"})
	defer r.queue.ShutDown()
	err := r.RemoveAll(t.Context(), pods)
	if err == nil || !strings.Contains(err.Error(), "500 of 500") || !strings.Contains(err.Error(), "the role is gone") {
		t.Errorf("got %v", err)
	}
	if n := len(patches(c)); n > removers {
		t.Errorf("%d tries without permission, want at most %d", n, removers)
	}
}

// An annotation that is being put on when RemoveAll is called must not stand afterwards.
func TestRemoveAllComesLast(t *testing.T) {
	c := fake.NewClientset(apiPod("p", "u"))
	begun, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	c.PrependReactor("patch", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		once.Do(func() {
			close(begun)
			<-goOn
		})
		return false, nil, nil
	})
	// The fake holds its lock while it reacts: the one that is in flight needs a client of its own.
	fast := fake.NewClientset()
	fast.PrependReactor("patch", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		pod, err := c.CoreV1().Pods("n").Patch(context.Background(), "p", types.MergePatchType, a.(clienttesting.PatchAction).GetPatch(), metav1.PatchOptions{}, "status")
		return true, pod, err
	})
	r := running(t, Options{Client: c, Fast: fast, Node: "node"})
	r.Enrolled(localPod("p", "u", source.RedirectionAbsent))
	<-begun
	ended := make(chan error)
	go func() { ended <- r.RemoveAll(t.Context(), []*source.Pod{localPod("p", "u", source.RedirectionAbsent)}) }()
	time.Sleep(50 * time.Millisecond)
	close(goOn)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if annotated(t, c, "p") {
		t.Error("the annotation stands after RemoveAll")
	}
}

func TestClip(t *testing.T) {
	for _, tc := range []struct {
		s    string
		n    int
		want string
	}{{"short", 10, "short"}, {"0123456789", 8, "0123 ..."}, {"ééééé", 9, "éé ..."}, {"bad\xff", 10, "bad?"}} {
		if got := clip(tc.s, tc.n); got != tc.want {
			t.Errorf("clip(%q, %d) = %q, want %q", tc.s, tc.n, got, tc.want)
		}
	}
}
