package cri

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// uidLabel is what kubelet labels every sandbox with.
const uidLabel = "io.kubernetes.pod.uid"

// Sandbox is a ready pod sandbox of this node.
type Sandbox struct {
	ID              string
	UID             string // the pod's; of a static pod the hash in its annotation kubernetes.io/config.hash
	Namespace, Name string
	Attempt         uint32
	Created         time.Time
	HostNetwork     bool
	PID             int    // a process in it, as the node counts; 0 when the runtime keeps none
	NetnsPath       string // as the runtime sees it, which need not be reachable from here
}

// Ref is the pod as "namespace/name".
func (s *Sandbox) Ref() string { return s.Namespace + "/" + s.Name }

// Sandboxes returns every ready sandbox, by namespace, name and attempt. Those that the runtime could not describe
// are left out and named in the error, which may come together with a result.
func (r *Runtime) Sandboxes(ctx context.Context) ([]Sandbox, error) {
	items, err := r.list(ctx, nil)
	if err != nil {
		return nil, err
	}
	var (
		mu     sync.Mutex
		all    []Sandbox
		failed []error
		calls  errgroup.Group
	)
	calls.SetLimit(maxStatusCalls)
	for _, item := range items {
		calls.Go(func() error {
			s, err := r.describe(ctx, item)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, ErrNotRunning): // it ended since it was listed
			case err != nil:
				failed = append(failed, err)
			default:
				all = append(all, *s)
			}
			return nil
		})
	}
	_ = calls.Wait() // none returns an error
	slices.SortFunc(all, func(a, b Sandbox) int {
		return cmp.Or(strings.Compare(a.Ref(), b.Ref()), cmp.Compare(a.Attempt, b.Attempt))
	})
	slices.SortFunc(failed, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return all, errors.Join(failed...)
}

func (r *Runtime) list(ctx context.Context, labels map[string]string) ([]*runtime.PodSandbox, error) {
	ctx, stop := context.WithTimeout(ctx, callTimeout)
	defer stop()
	answer, err := r.client.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{Filter: &runtime.PodSandboxFilter{
		State:         &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_READY},
		LabelSelector: labels,
	}})
	if err != nil {
		return nil, fmt.Errorf("container runtime: list sandboxes: %w", err)
	}
	return answer.GetItems(), nil
}

// describe asks for one sandbox. One that ended since it was listed is ErrNotRunning.
func (r *Runtime) describe(ctx context.Context, item *runtime.PodSandbox) (*Sandbox, error) {
	meta := item.GetMetadata()
	s := &Sandbox{
		ID: item.GetId(), UID: meta.GetUid(), Namespace: meta.GetNamespace(), Name: meta.GetName(),
		Attempt: meta.GetAttempt(), Created: time.Unix(0, item.GetCreatedAt()),
	}
	ctx, stop := context.WithTimeout(ctx, callTimeout)
	defer stop()
	answer, err := r.client.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: s.ID, Verbose: true})
	if status.Code(err) == codes.NotFound {
		return nil, fmt.Errorf("pod %s: sandbox %s: %w", s.Ref(), s.ID, ErrNotRunning)
	}
	if err != nil {
		return nil, fmt.Errorf("pod %s: sandbox %s: %w", s.Ref(), s.ID, err)
	}
	if answer.GetStatus().GetState() != runtime.PodSandboxState_SANDBOX_READY {
		return nil, fmt.Errorf("pod %s: sandbox %s: %w", s.Ref(), s.ID, ErrNotRunning)
	}
	options := answer.GetStatus().GetLinux().GetNamespaces().GetOptions()
	s.HostNetwork = options != nil && options.GetNetwork() == runtime.NamespaceMode_NODE
	where, err := parseInfo(answer.GetInfo())
	if err != nil && !s.HostNetwork {
		return nil, fmt.Errorf("pod %s: sandbox %s: the runtime does not tell its network namespace: %w", s.Ref(), s.ID, err)
	}
	s.PID, s.NetnsPath = where.pid, where.path
	return s, nil
}

// find returns the pod's ready sandbox. While one replaces another there may be two: the later attempt counts.
func (r *Runtime) find(ctx context.Context, uid string) (*runtime.PodSandbox, error) {
	items, err := r.list(ctx, map[string]string{uidLabel: uid})
	if err != nil {
		return nil, err
	}
	var found *runtime.PodSandbox
	for _, item := range items {
		// Who does not know the filter answers with all.
		ours := item.GetMetadata().GetUid() == uid && item.GetState() == runtime.PodSandboxState_SANDBOX_READY
		if ours && (found == nil || item.GetMetadata().GetAttempt() > found.GetMetadata().GetAttempt()) {
			found = item
		}
	}
	if found == nil {
		return nil, fmt.Errorf("pod with UID %s: %w", uid, ErrNotRunning)
	}
	return found, nil
}
