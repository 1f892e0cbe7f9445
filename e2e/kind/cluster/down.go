package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/e2e/kind/binaries"
)

// Down removes the cluster and everything that was made for it, also what a killed Up or Down left behind. The cache
// stays. Without a cluster it does nothing.
func (c *Cluster) Down(ctx context.Context) error {
	if c.kubeconfig != "" {
		return nil
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return c.down(ctx)
}

// down does the work; the caller holds the lock.
func (c *Cluster) down(ctx context.Context) error {
	s, err := loadState()
	if err != nil {
		return err
	}
	if s == nil {
		return removeRunDir()
	}
	if own := s.DataRoot != ""; own != c.isolated() {
		return errors.New("cluster: KIND_NODE_IMAGE was set when it was made and is not now, or the other way round; set it as it was then")
	}
	if !c.isolated() {
		if err := c.deleteNodes(ctx); err != nil {
			return err
		}
		return removeRunDir()
	}
	if err := c.removeContainers(ctx); err != nil {
		c.log.Warn("the nodes are removed by force", "because", err)
	}
	if err := c.stopDocker(s.DataRoot); err != nil {
		return err
	}
	err = errors.Join(
		deleteNamespace(c.Netns()),
		restoreSysctls("/proc/sys", s.Sysctls),
		removeEmpty(s.Folders),
	)
	if err != nil {
		return err // the state stays, for another try
	}
	return removeRunDir()
}

func removeRunDir() error {
	if err := os.RemoveAll(runDir); err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	return nil
}

// deleteNodes lets kind remove the cluster from the machine's own docker.
func (c *Cluster) deleteNodes(ctx context.Context) error {
	kind, err := binaries.Kind(ctx, c.store, c.source)
	if err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	_, err = command{env: c.dockerEnv()}.run(ctx, kind, "delete", "cluster", "--name="+Name, "--kubeconfig="+c.Kubeconfig())
	if err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	return nil
}

// removeContainers removes every container of our daemon, with its volumes.
func (c *Cluster) removeContainers(ctx context.Context) error {
	out, err := c.docker(ctx, command{limit: 20 * time.Second}, "ps", "--all", "--quiet")
	if err != nil {
		return fmt.Errorf("cluster: list the containers: %w", err)
	}
	if ids := strings.Fields(out); len(ids) > 0 {
		if _, err := c.docker(ctx, command{}, append([]string{"rm", "--force", "--volumes"}, ids...)...); err != nil {
			return fmt.Errorf("cluster: remove the nodes: %w", err)
		}
	}
	for _, kind := range []string{"volume", "network"} {
		if _, err := c.docker(ctx, command{}, kind, "prune", "--force"); err != nil {
			return fmt.Errorf("cluster: remove the %ss: %w", kind, err)
		}
	}
	return nil
}

// removeEmpty removes folders that are empty.
func removeEmpty(folders []string) error {
	for _, f := range folders {
		entries, err := os.ReadDir(f)
		if err != nil || len(entries) > 0 {
			continue // gone, or in use by now
		}
		if err := os.Remove(f); err != nil {
			return fmt.Errorf("cluster: %w", err)
		}
	}
	return nil
}

// stopDocker ends our daemon, and whatever it or a killed one left behind.
func (c *Cluster) stopDocker(dataRoot string) error {
	if err := stopDaemons(dataRoot); err != nil {
		return err
	}
	if err := removeCgroups("/sys/fs/cgroup"); err != nil {
		return err
	}
	if err := unmountBelow(execRoot(), dataRoot); err != nil {
		return err
	}
	// Containers that could not be removed in order would come back with the next daemon.
	left, err := filepath.Glob(filepath.Join(dataRoot, "containers", "*"))
	if err != nil || len(left) == 0 {
		return err
	}
	c.log.Info("removing docker's data, which is in disorder", "path", dataRoot)
	if err := os.RemoveAll(dataRoot); err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	return nil
}
