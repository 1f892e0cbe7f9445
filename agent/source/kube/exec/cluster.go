package exec

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// agentSelector is what the manifests label agents with.
	agentSelector = "app.kubernetes.io/name=culvert,app.kubernetes.io/component=agent"
	userAgent     = "culvert"

	askTimeout = 15 * time.Second
	// maxListed bounds what is asked for to name candidates, and maxNamed how many are named.
	maxListed = 500
	maxNamed  = 10
)

// Options say which cluster, and where in it Culvert is.
type Options struct {
	Kubeconfig string // empty: as kubectl finds it, or as a pod of the cluster
	Context    string // of the kubeconfig; empty: the current one
	Namespace  string // of the agents
}

// Cluster is reached through its API server.
type Cluster struct {
	config    *rest.Config
	core      rest.Interface
	params    runtime.ParameterCodec
	namespace string
}

// Open reads the kubeconfig; nothing is asked yet.
func Open(o Options) (*Cluster, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.Kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: o.Context}).ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, errors.New("API server: no kubeconfig is set: name one with --kubeconfig")
	}
	if err != nil {
		return nil, fmt.Errorf("API server: kubeconfig: %w", err)
	}
	return open(config, o.Namespace)
}

func open(config *rest.Config, namespace string) (*Cluster, error) {
	scheme := runtime.NewScheme()
	if err := core.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("types of Kubernetes: %w", err)
	}
	config = rest.CopyConfig(config)
	config.UserAgent, config.APIPath, config.GroupVersion = userAgent, "/api", &core.SchemeGroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	return &Cluster{config: config, core: client, params: runtime.NewParameterCodec(scheme), namespace: namespace}, nil
}

// NodeOf returns the node on which a pod ("namespace/name") runs.
func (c *Cluster) NodeOf(ctx context.Context, pod string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	namespace, name, _ := strings.Cut(pod, "/")
	var p core.Pod
	err := c.core.Get().Resource("pods").Namespace(namespace).Name(name).Do(ctx).Into(&p)
	switch {
	case apierrors.IsNotFound(err):
		return "", fmt.Errorf("pods %q not found in namespace %q: %s", name, namespace, c.otherPods(ctx, namespace, name))
	case err != nil:
		return "", fmt.Errorf("API server: pod %s: %w", pod, err)
	case p.Spec.NodeName == "":
		return "", fmt.Errorf("pod %s runs nowhere: it has not been scheduled to a node yet", pod)
	}
	return p.Spec.NodeName, nil
}

// otherPods names those that may have been meant.
func (c *Cluster) otherPods(ctx context.Context, namespace, name string) string {
	pods, err := c.pods(ctx, namespace, metav1.ListOptions{Limit: maxListed})
	if err != nil {
		return err.Error()
	}
	if len(pods) == 0 {
		return fmt.Sprintf("namespace %s has no pods, or does not exist", namespace)
	}
	// A pod that was replaced has the name of its predecessor but for the end.
	for stem := name; stem != ""; stem = stem[:max(strings.LastIndexByte(stem, '-'), 0)] {
		var similar []string
		for i := range pods {
			if strings.HasPrefix(pods[i].Name, stem) {
				similar = append(similar, pods[i].Name)
			}
		}
		if len(similar) > 0 {
			return "there are " + some(similar)
		}
	}
	names := make([]string, 0, len(pods))
	for i := range pods {
		names = append(names, pods[i].Name)
	}
	return fmt.Sprintf("in %s there are %s", namespace, some(names))
}

// agentNodes returns the nodes that have an agent.
func (c *Cluster) agentNodes(ctx context.Context) ([]string, error) {
	states, err := c.AgentNodes(ctx)
	return slices.Sorted(maps.Keys(states)), err
}

// NamedNodes are those that have an agent, for people.
func (c *Cluster) NamedNodes(ctx context.Context) string {
	nodes, err := c.agentNodes(ctx)
	switch {
	case err != nil:
		return err.Error()
	case len(nodes) == 0:
		return fmt.Sprintf("no pod in namespace %s is an agent (%s): is Culvert in another one?", c.namespace, agentSelector)
	}
	return "agents run on " + some(nodes)
}

// agentOn returns the name of the agent's pod on a node.
func (c *Cluster) agentOn(ctx context.Context, node string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	pods, err := c.pods(ctx, c.namespace, metav1.ListOptions{
		LabelSelector: agentSelector, FieldSelector: fields.OneTermEqualSelector("spec.nodeName", node).String(), Limit: maxListed,
	})
	if err != nil {
		return "", err
	}
	if len(pods) == 0 {
		return "", fmt.Errorf("node %s has no agent: %s", node, c.NamedNodes(ctx))
	}
	// While a DaemonSet is rolled out there may be two: the one that ends, and its successor.
	best := slices.MaxFunc(pods, func(a, b core.Pod) int { return worth(&a) - worth(&b) })
	if worth(&best) == 0 {
		return "", fmt.Errorf("agent of node %s (pod %s/%s) does not run: it is %s", node, c.namespace, best.Name, best.Status.Phase)
	}
	return best.Name, nil
}

// worth is 0 for a pod that no command can be run in.
func worth(p *core.Pod) int {
	switch {
	case p.Status.Phase != core.PodRunning:
		return 0
	case p.DeletionTimestamp != nil:
		return 1
	}
	return 2
}

func (c *Cluster) pods(ctx context.Context, namespace string, o metav1.ListOptions) ([]core.Pod, error) {
	var list core.PodList
	err := c.core.Get().Resource("pods").Namespace(namespace).VersionedParams(&o, c.params).Do(ctx).Into(&list)
	if err != nil {
		return nil, fmt.Errorf("API server: pods of namespace %s: %w", namespace, err)
	}
	return list.Items, nil
}

func some(names []string) string {
	slices.Sort(names)
	if more := len(names) - maxNamed; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:maxNamed], ", "), more)
	}
	return strings.Join(names, ", ")
}
