package kube

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/time/rate"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
)

const (
	pageSize = 500
	maxPages = 20 // of the pods of one namespace on one node
	// A pod in CNI ADD may be asked for before the watch has told of it; then the API server is asked.
	listTimeout    = 5 * time.Second
	listsPerSecond = 100
	listBurst      = 300
)

// Pods knows which identities run on which node. Run keeps it up to date. Safe for concurrent use.
type Pods struct {
	client kubernetes.Interface
	index  *index
	limit  *rate.Limiter
}

// NewPods returns a Pods that asks client.
func NewPods(c *Client) *Pods {
	return &Pods{client: c.api, index: newIndex(), limit: rate.NewLimiter(listsPerSecond, listBurst)}
}

// Run watches all pods until ctx ends.
func (p *Pods) Run(ctx context.Context) error {
	pods := p.client.CoreV1().Pods(meta.NamespaceAll)
	// Only pods that are on a node and have not ended: the API server turns the others into deletions.
	selector := "spec.nodeName!=,status.phase!=" + string(core.PodSucceeded) + ",status.phase!=" + string(core.PodFailed)
	source := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o meta.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector
			list, err := pods.List(ctx, o)
			if err != nil {
				return nil, fmt.Errorf("list pods: %w", err)
			}
			for i := range list.Items {
				trim(&list.Items[i])
			}
			return list, nil
		},
		WatchFuncWithContext: func(ctx context.Context, o meta.ListOptions) (watch.Interface, error) {
			o.FieldSelector = selector
			return pods.Watch(ctx, o)
		},
	}, p.client)
	r := cache.NewReflectorWithOptions(source, &core.Pod{}, p.index, cache.ReflectorOptions{Name: "pods of the CA"})
	r.WatchListPageSize = pageSize
	r.RunWithContext(ctx)
	return nil
}

// Synced reports whether all pods are known.
func (p *Pods) Synced() bool { return p.index.isSynced() }

// Runs reports whether a live pod with that service account is on the node. If none is known, the API server is
// asked, because a new pod's first certificate is wanted before the watch may have told of it.
func (p *Pods) Runs(ctx context.Context, node, namespace, name string) (bool, error) {
	if found, _ := p.index.runs(node, namespace, name); found {
		return true, nil
	}
	if !p.limit.Allow() {
		return false, fmt.Errorf("pods of node %s: more than %d lists a second: %w", node, listsPerSecond, ca.ErrUnavailable)
	}
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	o := meta.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", node).String(), Limit: pageSize}
	for range maxPages {
		list, err := p.client.CoreV1().Pods(namespace).List(ctx, o)
		if err != nil {
			return false, fmt.Errorf("pods of node %s (list pods): %w: %w", node, err, ca.ErrUnavailable)
		}
		for i := range list.Items {
			pod := &list.Items[i]
			if pod.Spec.NodeName == node && holdsIdentity(pod) && serviceAccount(pod) == name {
				return true, nil
			}
		}
		if o.Continue = list.Continue; o.Continue == "" {
			return false, nil
		}
	}
	return false, nil
}
