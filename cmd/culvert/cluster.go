package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/source/kube/exec"
)

// fleet is a cluster that is asked about more than one node.
type fleet interface {
	cluster
	AllNodes(ctx context.Context) ([]string, error)
	AgentNodes(ctx context.Context) (map[string]string, error)
	PodsNamed(ctx context.Context, name string) ([]string, error)
	PodsIn(ctx context.Context, namespace string) ([]string, error)
}

var _ fleet = (*exec.Cluster)(nil)

// asking is reach for commands that ask about an object, whose namespace -n is.
type asking struct {
	reach
	namespace string
}

func newAsking() *asking { return &asking{reach: reach{open: openCluster}} }

func (a *asking) register(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&a.socket, "admin-socket", admin.DefaultSocket, "unix socket of this node's agent")
	flags.BoolVar(&a.local, "local", false, "ask this node's agent only, never the API server")
	flags.StringVar(&a.node, "node", "", "ask the agent of this node, through the API server")
	flags.StringVar(&a.cluster.Kubeconfig, "kubeconfig", "", "file that says how the API server is reached (default: as kubectl does)")
	flags.StringVar(&a.cluster.Context, "context", "", "context of the kubeconfig (default: the current one)")
	flags.StringVar(&a.cluster.Namespace, "culvert-namespace", "culvert-system", "the agents' own namespace")
	_ = c.RegisterFlagCompletionFunc("node", a.completeNodes) // the flag is there
}

// registerNamespace is for commands about an object in a namespace.
func (a *asking) registerNamespace(c *cobra.Command) {
	c.Flags().StringVarP(&a.namespace, "namespace", "n", "", "namespace of what is asked for, where its name has none")
}

func (a *asking) check() error {
	if a.local && a.node != "" {
		return usage("--local and --node exclude each other")
	}
	return nil
}

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

func (a *asking) openFleet() (fleet, error) {
	c, err := a.open(a.cluster)
	if err != nil {
		return nil, err
	}
	f, ok := c.(fleet)
	if !ok {
		return nil, errors.New("cluster: cannot be asked about all of its nodes")
	}
	return f, nil
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
	f, err := a.openFleet()
	if err != nil {
		return nil, errors.Join(here, err)
	}
	node, err := a.nodeOf(ctx, f, pod)
	if err != nil {
		return nil, err
	}
	return remote[T](ctx, f, node, args)
}

func (a *asking) nodeOf(ctx context.Context, f fleet, pod string) (string, error) {
	if a.node != "" {
		return a.node, nil
	}
	if pod == "" {
		return anyAgent(ctx, f)
	}
	if !strings.Contains(pod, "/") {
		found, err := f.PodsNamed(ctx, pod)
		switch {
		case err != nil:
			return "", err
		case len(found) == 0:
			return "", fmt.Errorf("there is no pod %s in any namespace", pod)
		case len(found) > 1:
			return "", fmt.Errorf("pod %s is in several namespaces: say which of %s", pod, someOf(found, maxCandidates))
		}
		pod = found[0]
	}
	return f.NodeOf(ctx, pod)
}

// anyAgent is a node whose agent runs: the first by name, so that the same one is asked again.
func anyAgent(ctx context.Context, f fleet) (string, error) {
	agents, err := f.AgentNodes(ctx)
	if err != nil {
		return "", err
	}
	best := ""
	for node, trouble := range agents {
		if trouble == "" && (best == "" || node < best) {
			best = node
		}
	}
	if best == "" {
		return "", fmt.Errorf("no agent runs: %s", f.NamedNodes(ctx))
	}
	return best, nil
}

// remote runs culvert with these arguments in a node's agent and reads its answer, that of bad news too.
func remote[T any](ctx context.Context, c cluster, node string, args []string) (*T, error) {
	text, err := c.Run(ctx, node, args...)
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || len(text) == 0) {
		return nil, explainExit(err)
	}
	v := new(T)
	if err := json.Unmarshal(text, v); err != nil {
		return nil, fmt.Errorf("agent of node %s: answer: %w", node, err)
	}
	return v, nil
}

// finished turns the error of whatever Ctrl-C ended into the exit code that shells expect.
func finished(c *cobra.Command, err error) error {
	if err != nil && c.Context().Err() != nil {
		return &exitError{code: exitInterrupted, err: fmt.Errorf("%s: interrupted", c.Name())}
	}
	return err
}

// hasKubeconfig reports whether anyone said how the API server is reached. A pod's own account does not count: an agent's
// may not run anything in other agents.
func (a *asking) hasKubeconfig() bool {
	if a.cluster.Kubeconfig != "" || a.cluster.Context != "" || os.Getenv("KUBECONFIG") != "" {
		return true
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return false
	}
	_, err = os.Stat(filepath.Join(home, ".kube", "config"))
	return !errors.Is(err, fs.ErrNotExist)
}
