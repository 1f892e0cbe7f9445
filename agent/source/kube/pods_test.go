package kube

import (
	"fmt"
	"maps"
	"reflect"
	"runtime"
	"slices"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/culvert-mesh/culvert/agent/source"
)

func TestConvertPod(t *testing.T) {
	base := func(change func(*core.Pod)) *core.Pod {
		p := &core.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "p", UID: "u"},
			Spec:       core.PodSpec{NodeName: "there", Containers: []core.Container{{Name: "c"}}},
			Status:     core.PodStatus{Phase: core.PodRunning, PodIP: "10.0.0.1"},
		}
		change(p)
		return p
	}
	for _, tc := range []struct {
		name string
		pod  *core.Pod
		ok   func(*source.Pod) bool
	}{
		{"not scheduled", base(func(p *core.Pod) { p.Spec.NodeName = "" }), nil},
		{"succeeded", base(func(p *core.Pod) { p.Status.Phase = core.PodSucceeded }), nil},
		{"failed", base(func(p *core.Pod) { p.Status.Phase = core.PodFailed }), nil},
		{"podIP alone", base(func(*core.Pod) {}), func(p *source.Pod) bool { return len(p.Addresses) == 1 }},
		{"no address yet", base(func(p *core.Pod) { p.Status.PodIP = "" }), func(p *source.Pod) bool { return p.Addresses == nil }},
		{"bad address", base(func(p *core.Pod) { p.Status.PodIPs = []core.PodIP{{IP: "x"}, {IP: "fd00::1"}} }),
			func(p *source.Pod) bool { return len(p.Addresses) == 1 && p.Addresses[0].Is6() }},
		{"remote sidecar as init container", base(func(p *core.Pod) {
			p.Spec.InitContainers = []core.Container{{Name: "istio-proxy"}}
		}), func(p *source.Pod) bool { return slices.Equal(p.Containers, []string{"istio-proxy"}) }},
		{"remote that opts out", base(func(p *core.Pod) {
			p.Annotations = map[string]string{"sidecar.istio.io/inject": "false", "other": "x"}
		}), func(p *source.Pod) bool {
			return maps.Equal(p.Annotations, map[string]string{"sidecar.istio.io/inject": "false"})
		}},
		{"local", base(func(p *core.Pod) {
			p.Spec.NodeName = "here"
			p.Spec.InitContainers = []core.Container{{Name: "i", Ports: []core.ContainerPort{{Name: "http", ContainerPort: 1}}}}
			p.Spec.Containers[0].Ports = []core.ContainerPort{{Name: "http", ContainerPort: 2}, {ContainerPort: 70000}, {ContainerPort: 3}}
			p.Annotations = map[string]string{source.NetnsAnnotation: "/proc/1/ns/net", appliedAnnotation: "{}", "a": "b"}
		}), func(p *source.Pod) bool {
			return p.NetnsPath == "" && p.Ports["http"] == 2 && slices.Equal(p.ContainerPorts, []uint16{2, 3, 1}) &&
				slices.Equal(p.Containers, []string{"c", "i"}) && len(p.Annotations) == 2
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, _ := podConverter{"here", &labelSets{}}.convert(tc.pod).(*source.Pod)
			switch {
			case tc.ok == nil && got != nil:
				t.Errorf("got %+v, want none", got)
			case tc.ok != nil && (got == nil || !tc.ok(got)):
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestLabelSets(t *testing.T) {
	var l labelSets
	a, b := l.share(map[string]string{"a": "1", "b": "2"}), l.share(map[string]string{"b": "2", "a": "1"})
	if reflect.ValueOf(a).Pointer() != reflect.ValueOf(b).Pointer() {
		t.Error("equal labels are not shared")
	}
	if c := l.share(map[string]string{"a": "1", "b": ""}); maps.Equal(a, c) {
		t.Error("different labels are shared")
	}
	for i := range 3 * maxShared {
		l.share(map[string]string{"i": fmt.Sprint(i)})
	}
	if n := len(l.recent) + len(l.before); n > 2*maxShared {
		t.Errorf("%d sets are remembered", n)
	}
	if l.share(nil) != nil {
		t.Error("no labels are not none")
	}
}

// bigPod is a pod as a Deployment makes it.
func bigPod(i int) *core.Pod {
	app := fmt.Sprintf("app-%d", i/10)
	return &core.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: fmt.Sprintf("team-%d", i/500), Name: fmt.Sprintf("%s-7d9c6b8f5d-%05d", app, i),
			UID: types.UID(fmt.Sprintf("%08d-1111-2222-3333-444444444444", i)), ResourceVersion: fmt.Sprint(i),
			CreationTimestamp: metav1.NewTime(time.Unix(1_700_000_000+int64(i), 0)),
			Labels: map[string]string{
				"app": app, "pod-template-hash": "7d9c6b8f5d", "app.kubernetes.io/name": app, "app.kubernetes.io/version": "1.2.3", "tier": "web",
			},
			Annotations: map[string]string{"ambient.istio.io/redirection": "enabled", "prometheus.io/scrape": "true"},
		},
		Spec: core.PodSpec{
			NodeName: fmt.Sprintf("node-%d", i%1000), ServiceAccountName: app,
			Containers: []core.Container{{Name: "main", Image: "registry.example/app:1", Ports: []core.ContainerPort{{Name: "http", ContainerPort: 8080}}}},
		},
		Status: core.PodStatus{Phase: core.PodRunning, PodIPs: []core.PodIP{{IP: fmt.Sprintf("10.%d.%d.%d", 128+i>>16, i>>8&255, i&255)}}},
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestMemoryOfPods bounds what 50,000 pods take, snapshots included.
func TestMemoryOfPods(t *testing.T) {
	const n, most = 50_000, 60 << 20
	before := heap()
	state := newState("node-0", "istio-system", nil)
	wake := make(chan struct{}, 1)
	slot := newSlot(wake, podTable{state.index})
	convert := podConverter{"node-0", &labelSets{}}.convert
	begun := time.Now()
	all := make(map[objectKey]any, n)
	for i := range n {
		p := bigPod(i)
		all[objectKey{p.Namespace, p.Name}] = convert(p)
	}
	slot.replace(all)
	all = nil
	slot.apply()
	snapshot := state.index.Snapshot()
	took := time.Since(begun)
	used := heap() - before
	t.Logf("%d pods: %.1f MB, %d bytes a pod, %v to build", snapshot.Pods(), float64(used)/(1<<20), used/n, took)
	if used > most {
		t.Errorf("%d bytes, more than %d", used, most)
	}
	runtime.KeepAlive(slot)
	runtime.KeepAlive(convert)
	runtime.KeepAlive(snapshot)
}

func BenchmarkConvertPod(b *testing.B) {
	convert := podConverter{"node-0", &labelSets{}}.convert
	p := bigPod(7)
	b.ReportAllocs()
	for b.Loop() {
		convert(p)
	}
}
