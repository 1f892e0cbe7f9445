package kube

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"
)

// ownAPI asks for the agent's own objects, each time anew and never from an API server's cache.
type ownAPI struct {
	client         metadata.Interface
	namespace, pod string
}

// owner is the DaemonSet that a pod belongs to.
type owner struct{ name, uid string }

// podState is what there is to say of the agent's own pod.
type podState int

const (
	podGone  podState = iota
	podFree           // it belongs to no DaemonSet, or not any more
	podOwned          // it belongs to one, which need not exist any more
)

// ofPod returns the DaemonSet that controls the agent's pod. It lists, because an agent may list pods and not get them.
func (o ownAPI) ofPod(ctx context.Context) (owner, podState, error) {
	m, err := o.listOne(ctx, schema.GroupVersionResource{Version: "v1", Resource: "pods"}, o.namespace, o.pod)
	if err != nil || m == nil {
		return owner{}, podGone, err
	}
	c := metav1.GetControllerOf(m)
	if c == nil || c.Kind != "DaemonSet" || schema.FromAPIVersionAndKind(c.APIVersion, c.Kind).Group != daemonSets.Group {
		return owner{}, podFree, nil
	}
	return owner{c.Name, string(c.UID)}, podOwned, nil
}

// namespaceEnds reports whether the agent's namespace is known to be terminating.
func (o ownAPI) namespaceEnds(ctx context.Context) bool {
	m, err := o.listOne(ctx, namespaces, "", o.namespace)
	return err == nil && m != nil && m.DeletionTimestamp != nil
}

// set returns what there is under the name of the agent's DaemonSet.
func (o ownAPI) set(ctx context.Context, name string) (life, error) {
	m, err := o.client.Resource(daemonSets).Namespace(o.namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return life{}, fmt.Errorf("own DaemonSet: %w", err)
	}
	if m.Name != name || m.UID == "" {
		return life{}, errors.New("own DaemonSet: the answer is something else")
	}
	return convertLife(m).(life), nil
}

func (o ownAPI) listOne(ctx context.Context, gvr schema.GroupVersionResource, namespace, name string) (*metav1.PartialObjectMetadata, error) {
	var client metadata.ResourceInterface = o.client.Resource(gvr)
	if namespace != "" {
		client = o.client.Resource(gvr).Namespace(namespace)
	}
	list, err := client.List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		return nil, fmt.Errorf("own %s: %w", gvr.Resource, err)
	}
	if list.ResourceVersion == "" {
		return nil, fmt.Errorf("own %s: the answer is no list", gvr.Resource)
	}
	for i := range list.Items {
		if list.Items[i].Name == name {
			return &list.Items[i], nil
		}
	}
	return nil, nil
}

// refused reports whether the API server answered that the agent may not ask.
func refused(err error) bool { return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) }
