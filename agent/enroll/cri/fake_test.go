package cri

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeRuntime answers the calls of this package over a real unix socket.
type fakeRuntime struct {
	runtime.UnimplementedRuntimeServiceServer

	mu        sync.Mutex
	sandboxes []*fakeSandbox
	running   int // status calls at this moment
	most      int
	onStatus  func(id string, call int)
	calls     map[string]int
	unlabeled bool // ignores label selectors
}

type fakeSandbox struct {
	item  *runtime.PodSandbox
	info  map[string]string
	gone  bool // listed, but its status is not found
	state runtime.PodSandboxState
}

func sandbox(uid, name string, attempt uint32, info map[string]string) *fakeSandbox {
	return &fakeSandbox{info: info, item: &runtime.PodSandbox{
		Id:        uid + "-" + name,
		Metadata:  &runtime.PodSandboxMetadata{Name: name, Namespace: "n", Uid: uid, Attempt: attempt},
		CreatedAt: 1700000000000000000,
		Labels:    map[string]string{uidLabel: uid},
	}}
}

func (f *fakeRuntime) Version(context.Context, *runtime.VersionRequest) (*runtime.VersionResponse, error) {
	return &runtime.VersionResponse{RuntimeName: "fake", RuntimeVersion: "1.0", RuntimeApiVersion: "v1"}, nil
}

func (f *fakeRuntime) ListPodSandbox(_ context.Context, q *runtime.ListPodSandboxRequest) (*runtime.ListPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := &runtime.ListPodSandboxResponse{}
	for _, s := range f.sandboxes {
		if want := q.GetFilter().GetState(); want == nil || s.state != want.State {
			continue
		}
		if uid, ok := q.GetFilter().GetLabelSelector()[uidLabel]; ok && !f.unlabeled && s.item.Labels[uidLabel] != uid {
			continue
		}
		answer.Items = append(answer.Items, s.item)
	}
	return answer, nil
}

func (f *fakeRuntime) PodSandboxStatus(_ context.Context, q *runtime.PodSandboxStatusRequest) (*runtime.PodSandboxStatusResponse, error) {
	f.mu.Lock()
	f.running++
	f.most = max(f.most, f.running)
	if f.calls == nil {
		f.calls = map[string]int{}
	}
	f.calls[q.PodSandboxId]++
	call, hook := f.calls[q.PodSandboxId], f.onStatus
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.running--
		f.mu.Unlock()
	}()
	if hook != nil {
		hook(q.PodSandboxId, call)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.sandboxes {
		if s.item.Id != q.PodSandboxId || s.gone {
			continue
		}
		mode := runtime.NamespaceMode_POD
		if s.item.Annotations["mode"] == "node" {
			mode = runtime.NamespaceMode_NODE
		}
		answer := &runtime.PodSandboxStatusResponse{Status: &runtime.PodSandboxStatus{
			Id: s.item.Id, Metadata: s.item.Metadata, State: s.state, CreatedAt: s.item.CreatedAt,
			Linux: &runtime.LinuxPodSandboxStatus{Namespaces: &runtime.Namespace{Options: &runtime.NamespaceOption{Network: mode}}},
		}}
		if q.Verbose {
			answer.Info = s.info
		}
		return answer, nil
	}
	return nil, status.Error(codes.NotFound, "an error occurred when try to find sandbox: not found")
}

// serve runs f on the socket until the returned function is called, or the test ends.
func serve(t *testing.T, socket string, f runtime.RuntimeServiceServer) (stop func()) {
	t.Helper()
	_ = os.Remove(socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	runtime.RegisterRuntimeServiceServer(s, f)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			s.Stop()
			if err := <-ended; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				t.Errorf("fake runtime: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func open(t *testing.T, o Options) *Runtime {
	t.Helper()
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}
