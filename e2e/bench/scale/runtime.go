package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const uidLabel = "io.kubernetes.pod.uid"

// containerRuntime is the part of a container runtime that the agent asks for the pods it finds running: which
// sandboxes there are, and where their network namespaces.
type containerRuntime struct {
	cri.UnimplementedRuntimeServiceServer
	server *grpc.Server
	ended  chan error

	mu    sync.Mutex
	known map[string]*sampled // by UID
}

func startRuntime(socket string) (*containerRuntime, error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("socket of the container runtime: %w", err)
	}
	r := &containerRuntime{server: grpc.NewServer(), ended: make(chan error, 1), known: map[string]*sampled{}}
	cri.RegisterRuntimeServiceServer(r.server, r)
	go func() { r.ended <- r.server.Serve(l) }()
	return r, nil
}

func (r *containerRuntime) close() error {
	r.server.Stop()
	if err := <-r.ended; !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// add makes a sandbox known.
func (r *containerRuntime) add(p *sampled) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known[p.slot.uid] = p
}

// Version implements cri.RuntimeServiceServer.
func (r *containerRuntime) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "scale", RuntimeVersion: "1", RuntimeApiVersion: "v1"}, nil
}

// ListPodSandbox implements cri.RuntimeServiceServer.
func (r *containerRuntime) ListPodSandbox(_ context.Context, q *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	answer := &cri.ListPodSandboxResponse{}
	if uid, ok := q.GetFilter().GetLabelSelector()[uidLabel]; ok {
		if p := r.known[uid]; p != nil {
			answer.Items = append(answer.Items, p.sandbox())
		}
		return answer, nil
	}
	for _, p := range r.known {
		answer.Items = append(answer.Items, p.sandbox())
	}
	return answer, nil
}

func (p *sampled) sandbox() *cri.PodSandbox {
	return &cri.PodSandbox{
		Id: p.container(), State: cri.PodSandboxState_SANDBOX_READY, Labels: map[string]string{uidLabel: p.slot.uid},
		Metadata: &cri.PodSandboxMetadata{Namespace: p.slot.namespace, Name: p.slot.name(), Uid: p.slot.uid},
	}
}

func (p *sampled) container() string { return "sandbox-" + p.slot.uid }

// PodSandboxStatus implements cri.RuntimeServiceServer.
func (r *containerRuntime) PodSandboxStatus(_ context.Context, q *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.known {
		if p.container() != q.PodSandboxId {
			continue
		}
		s := p.sandbox()
		return &cri.PodSandboxStatusResponse{
			Status: &cri.PodSandboxStatus{Id: s.Id, Metadata: s.Metadata, State: s.State},
			Info: map[string]string{"info": fmt.Sprintf(
				`{"runtimeSpec":{"linux":{"namespaces":[{"type":"network","path":%q}]}}}`, p.slot.local.NetnsPath)},
		}, nil
	}
	return nil, status.Error(codes.NotFound, "no such sandbox")
}
