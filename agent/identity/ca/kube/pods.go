package kube

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
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
	"github.com/culvert-mesh/culvert/agent/identity/ca/limit"
)

const (
	pageSize = 500
	maxPages = 20 // of the pods of one namespace on one node
	// A pod in CNI ADD may be asked for before the watch has told of it; then the API server is asked.
	listTimeout    = 5 * time.Second
	listsPerSecond = 100
	listBurst      = 300
	// A node's own part of it. A node that starts asks for each of its service accounts at once.
	nodeListsPerSecond = 5
	nodeListBurst      = 50
)

// Pods knows which identities run on which node. Run keeps it up to date. Safe for concurrent use.
type Pods struct {
	client kubernetes.Interface
	index  *index
	limit  *rate.Limiter
	nodes  *limit.Keyed
}

// NewPods returns a Pods that asks client. Agents have one of the accounts, namespace/name.
func NewPods(c *Client, accounts []string) *Pods {
	agent := func(namespace, account string) bool { return slices.Contains(accounts, namespace+"/"+account) }
	return &Pods{client: c.api, index: newIndex(agent), limit: rate.NewLimiter(listsPerSecond, listBurst),
		nodes: limit.New(nodeListsPerSecond, nodeListBurst)}
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
				p.index.trim(&list.Items[i])
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
	if err := p.mayList(node); err != nil {
		return false, err
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

// mayList holds a node back before it takes the lists of all others.
func (p *Pods) mayList(node string) error {
	if !p.nodes.Allow(node) {
		return fmt.Errorf("pods of node %s: more than %d lists a second for one node: %w", node, nodeListsPerSecond, ca.ErrUnavailable)
	}
	if !p.limit.Allow() {
		return fmt.Errorf("pods of node %s: more than %d lists a second: %w", node, listsPerSecond, ca.ErrUnavailable)
	}
	return nil
}

// KnownAddresses are those of an agent's pod and its node as far as the watch has told; none if it has not.
func (p *Pods) KnownAddresses(c ca.Caller) []netip.Addr { return p.index.addresses(c.PodUID) }

// Addresses are those of an agent's pod and its node. The API server is asked if the watch has not told of them yet.
func (p *Pods) Addresses(ctx context.Context, c ca.Caller) ([]netip.Addr, error) {
	if known := p.KnownAddresses(c); len(known) > 0 {
		return known, nil
	}
	if err := p.mayList(c.Node); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	list, err := p.client.CoreV1().Pods(c.Namespace).List(ctx, meta.ListOptions{
		FieldSelector: fields.OneTermEqualSelector(meta.ObjectNameField, c.Pod).String()})
	if err != nil {
		return nil, fmt.Errorf("pod %s/%s (list pods): %w: %w", c.Namespace, c.Pod, err, ca.ErrUnavailable)
	}
	for i := range list.Items {
		if pod := &list.Items[i]; string(pod.UID) == c.PodUID {
			if all := addresses(pod); len(all) > 0 {
				return all, nil
			}
		}
	}
	return nil, fmt.Errorf("pod %s/%s: its address is not known yet: %w", c.Namespace, c.Pod, ca.ErrUnavailable)
}
