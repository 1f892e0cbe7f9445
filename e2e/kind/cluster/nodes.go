package cluster

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// Exec runs a command in a node's container and returns its standard output.
func (c *Cluster) Exec(ctx context.Context, node string, stdin io.Reader, args ...string) (string, error) {
	out, err := c.exec(ctx, node, command{stdin: stdin}, args...)
	if err != nil {
		return out, fmt.Errorf("cluster: %w", err)
	}
	return out, nil
}

func (c *Cluster) exec(ctx context.Context, node string, cmd command, args ...string) (string, error) {
	if err := c.checkNode(node); err != nil {
		return "", err
	}
	options := []string{"exec"}
	if cmd.stdin != nil {
		options = append(options, "--interactive")
	}
	cmd.as = cmd.describe(args[0], args[1:])
	out, err := c.docker(ctx, cmd, append(append(options, node), args...)...)
	if err != nil {
		return out, fmt.Errorf("node %s: %w", node, err)
	}
	return out, nil
}

func (c *Cluster) checkNode(node string) error {
	if c.kubeconfig != "" {
		return fmt.Errorf("node %s: %w", node, ErrNoNodes)
	}
	if !slices.Contains(nodeNames(), node) {
		return fmt.Errorf("there is no node %q; there are %s", node, strings.Join(nodeNames(), " and "))
	}
	return nil
}

// writeOnNode writes a file as a whole, so that nobody reads half of it.
func (c *Cluster) writeOnNode(ctx context.Context, node, path, content string) error {
	const script = `mkdir -p "${1%/*}" && cat >"$1.new" && mv "$1.new" "$1"`
	if _, err := c.exec(ctx, node, command{stdin: strings.NewReader(content)}, "sh", "-c", script, "sh", path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// LoadImage imports an archive of images, as `docker save` and package image write them, into both nodes.
// Pods use them with imagePullPolicy IfNotPresent or Never.
func (c *Cluster) LoadImage(ctx context.Context, path string) error {
	if c.kubeconfig != "" {
		return fmt.Errorf("cluster: load image %s: %w; push it to a registry that the cluster pulls from", path, ErrNoNodes)
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, node := range nodeNames() {
		group.Go(func() error {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = c.exec(ctx, node, command{stdin: f, limit: 5 * time.Minute}, "ctr", "--namespace=k8s.io", "images", "import", "-")
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("cluster: load image %s: %w", path, err)
	}
	return nil
}
