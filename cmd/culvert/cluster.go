package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/admin"
)

// asking is reach for commands that ask about an object, whose namespace -n is.
type asking struct {
	reach
	namespace string
}

func newAsking() *asking { return &asking{reach: reach{open: openCluster}} }

// registerNamespace is for commands about an object in a namespace.
func (a *asking) registerNamespace(c *cobra.Command) {
	c.Flags().StringVarP(&a.namespace, "namespace", "n", "", namespaceUsage)
	_ = c.RegisterFlagCompletionFunc("namespace", a.completeNamespaces) // the flag is there
}

const namespaceUsage = "namespace of what is asked for"

// named is an argument as "namespace/name", or a name alone, which agents find if it is the only one.
func (a *asking) named(arg string) (string, error) {
	namespace, name, full := strings.Cut(arg, "/")
	switch {
	case arg == "" || strings.Count(arg, "/") > 1 || full && (namespace == "" || name == ""):
		return "", usage("%q: say which as NAMESPACE/NAME", arg)
	case !full && a.namespace != "":
		return a.namespace + "/" + arg, nil
	case full && a.namespace != "" && namespace != a.namespace:
		return "", usage("%s is not in namespace %s, which -n names", arg, a.namespace)
	}
	return arg, nil
}

// namedPod is named where a name alone is not enough.
func (a *asking) namedPod(arg string) (string, error) {
	name, err := a.named(arg)
	if err == nil && !strings.Contains(name, "/") {
		err = usage("%q: say which pod as NAMESPACE/POD, or name its namespace with -n", arg)
	}
	return name, err
}

// ask asks this node's agent; if it does not know the pod, or there is none, the agent of the pod's node, by running
// culvert with these arguments there. Any agent can answer what is about no pod.
func ask[T any](ctx context.Context, a *asking, pod string, args []string, local func(*admin.Client) (*T, error)) (*T, error) {
	var here error // why this node's agent is not enough
	if a.askLocal() {
		v, err := local(a.client())
		if err == nil || a.local || pod == "" || !errors.Is(err, admin.ErrUnknownWorkload) {
			return v, notRoot(err)
		}
		here = err
	} else if a.node == "" {
		here = fmt.Errorf("there is no agent's socket %s on this machine", a.socket)
	}
	c, err := a.open(a.cluster)
	if err != nil {
		return nil, errors.Join(here, err)
	}
	node, err := a.nodeOf(ctx, c, pod)
	if err != nil {
		return nil, err
	}
	return askNode[T](ctx, c, node, args)
}

func (a *asking) nodeOf(ctx context.Context, c cluster, pod string) (string, error) {
	if a.node != "" {
		return a.node, nil
	}
	if pod == "" {
		return anyAgent(ctx, c)
	}
	if !strings.Contains(pod, "/") {
		found, err := c.PodsNamed(ctx, pod)
		switch {
		case err != nil:
			return "", err
		case len(found) == 0:
			return "", fmt.Errorf("pods %q not found in any namespace", pod)
		case len(found) > 1:
			return "", fmt.Errorf("pods %q found in several namespaces; say which of %s", pod, someOf(found, maxCandidates))
		}
		pod = found[0]
	}
	return c.NodeOf(ctx, pod)
}

// anyAgent is a node whose agent runs: the first by name, so that the same one is asked again.
func anyAgent(ctx context.Context, c cluster) (string, error) {
	agents, err := agentNodes(ctx, c)
	if err != nil {
		return "", err
	}
	for _, n := range agents {
		if n.trouble == "" {
			return n.name, nil
		}
	}
	return "", fmt.Errorf("no agent runs: %s", c.NamedNodes(ctx))
}
