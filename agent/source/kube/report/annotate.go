package report

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/culvert-mesh/culvert/agent/source"
)

// verbPatchStatus is all that an agent may do to a pod. The status subresource takes annotations too, and cannot
// alter what a pod runs.
const verbPatchStatus = "patch pods/status"

var (
	// errOtherPod says that the pod is gone; another one may have its name.
	errOtherPod = errors.New("pod is no more")
	// errNotKept says that the API server took the patch without the annotation.
	errNotKept = errors.New("the API server did not keep the annotation: does an admission webhook remove it?")
)

// annotate puts the annotation on the pod with that UID, or takes it off. It carries no resource version, because
// whatever else changed about the pod is no reason not to; the UID in the patch makes the API server refuse it for a pod
// of the same name that came later.
func annotate(ctx context.Context, client kubernetes.Interface, namespace, name string, uid types.UID, on bool) error {
	var value any
	if on {
		value = source.RedirectionValue
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": uid, "annotations": map[string]any{source.RedirectionAnnotation: value},
	}})
	if err != nil {
		return fmt.Errorf("annotation: %w", err)
	}
	pod, err := client.CoreV1().Pods(namespace).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	switch {
	case err != nil && otherPod(err):
		return fmt.Errorf("%w: %w", errOtherPod, err)
	case err != nil:
		return fmt.Errorf("annotation of pod %s/%s: %w", namespace, name, err)
	}
	if _, there := pod.Annotations[source.RedirectionAnnotation]; there != on {
		return fmt.Errorf("annotation of pod %s/%s: %w", namespace, name, errNotKept)
	}
	return nil
}

// otherPod reports whether the pod that was meant is gone. A UID that differs is refused as an invalid change of
// metadata.uid, or as a conflict.
func otherPod(err error) bool {
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return true
	}
	var s apierrors.APIStatus
	if !apierrors.IsInvalid(err) || !errors.As(err, &s) || s.Status().Details == nil {
		return false
	}
	for _, c := range s.Status().Details.Causes {
		if c.Field == "metadata.uid" {
			return true
		}
	}
	return false
}

const (
	removers    = 20
	removePause = 50 * time.Millisecond
)

// removeAll calls remove for every pod, twenty at a time, and again where that may help.
func removeAll(ctx context.Context, pods []*source.Pod, remove func(context.Context, *source.Pod) error) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var (
		mu     sync.Mutex
		failed []error
		left   int
		tasks  errgroup.Group
	)
	tasks.SetLimit(removers)
	for _, pod := range pods {
		tasks.Go(func() error {
			if err := removeOne(ctx, pod, remove, stop); err != nil {
				mu.Lock()
				defer mu.Unlock()
				if left++; len(failed) < 3 {
					failed = append(failed, err)
				}
			}
			return nil
		})
	}
	_ = tasks.Wait() // none returns an error
	if left == 0 {
		return nil
	}
	return fmt.Errorf("annotations left on %d of %d pods: %w", left, len(pods), errors.Join(failed...))
}

func removeOne(ctx context.Context, pod *source.Pod, remove func(context.Context, *source.Pod) error, stop context.CancelCauseFunc) error {
	for {
		if ctx.Err() != nil {
			return fmt.Errorf("pod %s: %w", pod.Ref(), context.Cause(ctx))
		}
		err := remove(ctx, pod)
		switch {
		case err == nil:
			return nil
		case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
			// What is gone for one pod is gone for all.
			stop(err)
			return err
		}
		select {
		case <-time.After(removePause):
		case <-ctx.Done():
			return err
		}
	}
}
