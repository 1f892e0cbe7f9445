package cluster

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/e2e/kind/binaries"
)

// Kubectl runs kubectl against the cluster and returns its standard output. An error contains its standard error.
func (c *Cluster) Kubectl(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	out, err := c.kubectl(ctx, stdin, args...)
	if err != nil {
		return out, fmt.Errorf("cluster: %w", err)
	}
	return out, nil
}

func (c *Cluster) kubectl(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	argv, err := c.kubectlCommand(ctx)
	if err != nil {
		return "", err
	}
	argv = append(argv, args...)
	cmd := command{stdin: stdin, limit: kubectlLimit, as: command{}.describe("kubectl", args)}
	return cmd.run(ctx, argv[0], argv[1:]...)
}

// kubectlLimit leaves room for `kubectl wait`, whose own --timeout should be what ends it.
const kubectlLimit = 10 * time.Minute

// KubectlCommand returns how kubectl is called for this cluster: the words before its arguments.
func (c *Cluster) KubectlCommand(ctx context.Context) ([]string, error) {
	argv, err := c.kubectlCommand(ctx)
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	return argv, nil
}

func (c *Cluster) kubectlCommand(ctx context.Context) ([]string, error) {
	if !c.isolated() {
		path, err := exec.LookPath("kubectl")
		if err != nil {
			return nil, fmt.Errorf("%w; with E2E_KUBECONFIG or KIND_NODE_IMAGE the machine's own is used", err)
		}
		return []string{path, "--kubeconfig", c.Kubeconfig()}, nil
	}
	set, err := binaries.Build(ctx, c.store, c.source)
	if err != nil {
		return nil, fmt.Errorf("kubectl: %w", err)
	}
	return []string{"nsenter", "--net=" + c.Netns(), "--", set.Path("kubectl"), "--kubeconfig", c.Kubeconfig()}, nil
}

// Nodes returns the names of the cluster's nodes.
func (c *Cluster) Nodes(ctx context.Context) ([]string, error) {
	out, err := c.kubectl(ctx, nil, "get", "nodes", "--output=jsonpath={.items[*].metadata.name}")
	if err != nil {
		return nil, fmt.Errorf("cluster: list the nodes: %w", err)
	}
	return strings.Fields(out), nil
}

// waitNodes waits until all nodes are ready.
func (c *Cluster) waitNodes(ctx context.Context) error {
	if _, err := c.kubectl(ctx, nil, "wait", "node", "--all", "--for=condition=Ready", "--timeout=180s"); err != nil {
		return fmt.Errorf("cluster: nodes do not become ready: %w", err)
	}
	return nil
}

// waitReady waits until all nodes are ready and the system's pods run.
func (c *Cluster) waitReady(ctx context.Context) error {
	if err := c.waitNodes(ctx); err != nil {
		return err
	}
	for _, object := range []string{"daemonset/kube-proxy", "deployment/coredns"} {
		if _, err := c.kubectl(ctx, nil, "--namespace=kube-system", "rollout", "status", object, "--timeout=180s"); err != nil {
			return fmt.Errorf("cluster: %s does not become ready: %w", object, err)
		}
	}
	return nil
}
