package exec

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	core "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
)

// maxPages bounds what one question may list: 50,000 objects.
const maxPages = 100

// AllNodes returns every node of the cluster, with an agent or without, by name. It takes permission to list nodes.
func (c *Cluster) AllNodes(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var names []string
	options := metav1.ListOptions{Limit: maxListed}
	for range maxPages {
		var list core.NodeList
		if err := c.core.Get().Resource("nodes").VersionedParams(&options, c.params).Do(ctx).Into(&list); err != nil {
			return nil, fmt.Errorf("API server: nodes: %w", err)
		}
		for i := range list.Items {
			names = append(names, list.Items[i].Name)
		}
		if options.Continue = list.Continue; options.Continue == "" {
			break
		}
	}
	slices.Sort(names)
	return names, nil
}

// AgentNodes returns the nodes that an agent is scheduled to, and what is the matter with those agents that do not run:
// empty where one does.
func (c *Cluster) AgentNodes(ctx context.Context) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	states := map[string]string{}
	options := metav1.ListOptions{LabelSelector: agentSelector, Limit: maxListed}
	for range maxPages {
		var list core.PodList
		if err := c.core.Get().Resource("pods").Namespace(c.namespace).VersionedParams(&options, c.params).Do(ctx).Into(&list); err != nil {
			return nil, fmt.Errorf("API server: pods of namespace %s: %w", c.namespace, err)
		}
		for i := range list.Items {
			p := &list.Items[i]
			node := meantFor(p)
			if node == "" {
				continue
			}
			if state, known := states[node]; !known || state != "" {
				states[node] = agentState(p)
			}
		}
		if options.Continue = list.Continue; options.Continue == "" {
			break
		}
	}
	return states, nil
}

// meantFor is the node of a DaemonSet's pod, which its controller names before there is room for the pod on it.
func meantFor(p *core.Pod) string {
	if p.Spec.NodeName != "" || p.Spec.Affinity == nil || p.Spec.Affinity.NodeAffinity == nil ||
		p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return p.Spec.NodeName
	}
	for _, term := range p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, field := range term.MatchFields {
			if field.Key == "metadata.name" && field.Operator == core.NodeSelectorOpIn && len(field.Values) == 1 {
				return field.Values[0]
			}
		}
	}
	return ""
}

// agentState says why no command can be run in an agent; empty: it can.
func agentState(p *core.Pod) string {
	if worth(p) > 0 {
		return ""
	}
	for _, s := range p.Status.ContainerStatuses {
		if s.State.Waiting != nil {
			return fmt.Sprintf("agent (pod %s) does not run: %s", p.Name, s.State.Waiting.Reason)
		}
	}
	return fmt.Sprintf("agent (pod %s) does not run: it is %s", p.Name, cmp.Or(string(p.Status.Phase), "unknown"))
}

// PodsNamed returns the pods of that name in all namespaces, as "namespace/name".
func (c *Cluster) PodsNamed(ctx context.Context, name string) ([]string, error) {
	return c.podRefs(ctx, "", metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String(), Limit: maxListed})
}

// PodsIn returns the first few hundred pods of a namespace, or of all.
func (c *Cluster) PodsIn(ctx context.Context, namespace string) ([]string, error) {
	return c.podRefs(ctx, namespace, metav1.ListOptions{Limit: maxListed})
}

func (c *Cluster) podRefs(ctx context.Context, namespace string, o metav1.ListOptions) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	pods, err := c.pods(ctx, namespace, o)
	if err != nil {
		return nil, err
	}
	refs := make([]string, 0, len(pods))
	for i := range pods {
		refs = append(refs, pods[i].Namespace+"/"+pods[i].Name)
	}
	slices.Sort(refs)
	return refs, nil
}
