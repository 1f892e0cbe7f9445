package kube

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
)

func pod(name, node, account string, alter ...func(*core.Pod)) *core.Pod {
	p := &core.Pod{
		ObjectMeta: meta.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name)},
		Spec:       core.PodSpec{NodeName: node, ServiceAccountName: account},
		Status:     core.PodStatus{Phase: core.PodRunning},
	}
	for _, f := range alter {
		f(p)
	}
	return p
}

func noAgents(string, string) bool { return false }

func phase(ph core.PodPhase) func(*core.Pod) { return func(p *core.Pod) { p.Status.Phase = ph } }

func TestWhichPodsLetTheirNodeHaveTheirIdentity(t *testing.T) {
	now := meta.Now()
	tests := []struct {
		name string
		pod  *core.Pod
		want bool
	}{
		{"running", pod("p", "a", "cart"), true},
		{"in CNI ADD", pod("p", "a", "cart", phase(core.PodPending)), true},
		{"terminating", pod("p", "a", "cart", func(p *core.Pod) { p.DeletionTimestamp = &now }), true},
		{"no account named", pod("p", "a", ""), false},
		{"succeeded", pod("p", "a", "cart", phase(core.PodSucceeded)), false},
		{"failed", pod("p", "a", "cart", phase(core.PodFailed)), false},
		{"on the host's network", pod("p", "a", "cart", func(p *core.Pod) { p.Spec.HostNetwork = true }), false},
		{"on no node", pod("p", "", "cart"), false},
		{"on another node", pod("p", "b", "cart"), false},
		{"of another account", pod("p", "a", "till"), false},
		{"of another namespace", pod("p", "a", "cart", func(p *core.Pod) { p.Namespace = "bank" }), false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			// By the index, and by asking the API server.
			x := newIndex(noAgents)
			if err := x.Add(test.pod); err != nil {
				t.Fatal(err)
			}
			if got, _ := x.runs("a", "shop", "cart"); got != test.want {
				t.Errorf("index says %v, want %v", got, test.want)
			}
			got, err := NewPods(FromInterface(fake.NewSimpleClientset(test.pod)), nil).Runs(context.Background(), "a", "shop", "cart")
			if err != nil || got != test.want {
				t.Errorf("API server says %v, %v; want %v", got, err, test.want)
			}
		})
	}
}

func TestIndexCountsPods(t *testing.T) {
	x := newIndex(noAgents)
	expect := func(want bool) {
		t.Helper()
		if got, _ := x.runs("a", "shop", "cart"); got != want {
			t.Fatalf("runs is %v, want %v", got, want)
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(x.Replace([]any{pod("one", "a", "cart"), pod("two", "a", "cart")}, ""))
	expect(true)
	do(x.Delete(pod("one", "a", "cart")))
	expect(true)
	do(x.Update(pod("two", "a", "cart", phase(core.PodSucceeded))))
	expect(false)
	do(x.Delete(pod("two", "a", "cart")))
	expect(false)
	do(x.Add(pod("three", "a", "cart")))
	do(x.Add(pod("three", "a", "cart")))
	do(x.Delete(pod("three", "a", "cart")))
	expect(false)
	if len(x.counts)+len(x.pods) != 0 {
		t.Fatalf("left over: %v %v", x.counts, x.pods)
	}
}

func TestPodsFollowsTheCluster(t *testing.T) {
	client := fake.NewSimpleClientset(pod("one", "a", "cart"))
	pods := NewPods(FromInterface(client), nil)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- pods.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	eventually(t, pods.Synced)
	if got, _ := pods.index.runs("a", "shop", "cart"); !got {
		t.Fatal("a pod that was there before is not known")
	}
	if _, err := client.CoreV1().Pods("shop").Create(ctx, pod("two", "b", "cart"), meta.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { got, _ := pods.index.runs("b", "shop", "cart"); return got })
	if err := client.CoreV1().Pods("shop").Delete(ctx, "two", meta.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { got, _ := pods.index.runs("b", "shop", "cart"); return !got })
}

func TestAPIServerThatDoesNotAnswerIsNoRefusal(t *testing.T) {
	client := fake.NewSimpleClientset()
	client.PrependReactor("list", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("connection refused")
	})
	if _, err := NewPods(FromInterface(client), nil).Runs(context.Background(), "a", "shop", "cart"); !errors.Is(err, ca.ErrUnavailable) {
		t.Fatalf("error %v, want one that says to ask again", err)
	}
}

func TestListsAreBounded(t *testing.T) {
	pods := NewPods(FromInterface(fake.NewSimpleClientset()), nil)
	refused := 0
	for i := range 2 * listBurst {
		if _, err := pods.Runs(context.Background(), fmt.Sprint("node", i), "shop", "cart"); errors.Is(err, ca.ErrUnavailable) {
			refused++
		}
	}
	if refused == 0 {
		t.Fatal("no list was held back")
	}
}

func TestNodeThatListsTooOftenHoldsUpNoOther(t *testing.T) {
	pods := NewPods(FromInterface(fake.NewSimpleClientset()), nil)
	for i := range 2 * listBurst {
		_, _ = pods.Runs(context.Background(), "a", "shop", fmt.Sprint(i))
	}
	if _, err := pods.Runs(context.Background(), "a", "shop", "cart"); !errors.Is(err, ca.ErrUnavailable) {
		t.Errorf("not held back: %v", err)
	}
	if _, err := pods.Addresses(context.Background(), ca.Caller{Node: "a"}); err == nil || !strings.Contains(err.Error(), "for one node") {
		t.Errorf("not held back: %v", err)
	}
	if _, err := pods.Runs(context.Background(), "b", "shop", "cart"); err != nil {
		t.Errorf("another node: %v", err)
	}
}

func eventually(t *testing.T, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatal("still not so after 20 s")
}
