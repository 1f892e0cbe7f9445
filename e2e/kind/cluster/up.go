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
	"github.com/culvert-mesh/culvert/e2e/kind/node"
	"github.com/culvert-mesh/culvert/e2e/kind/tools"
)

// Options says what cluster Up makes.
type Options struct {
	IPFamily string // IPv4 or Dual
}

// keepImages is how long archives of images stay in the cache that the last cluster was not made of.
const keepImages = 7 * 24 * time.Hour

// createLimit bounds kind's own part.
const createLimit = 6 * time.Minute

// Up makes the cluster and waits until its nodes, its DNS and its Services work. One that is up and as asked for is
// left as it is; one that is not, or what a killed Up left behind, is removed first. When Up fails it
// removes what it made.
func (c *Cluster) Up(ctx context.Context, o Options) error {
	if c.kubeconfig != "" {
		return c.waitNodes(ctx)
	}
	if os.Geteuid() != 0 {
		return errors.New("cluster: making one needs root: it installs packages and starts privileged containers")
	}
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil && o.IPFamily == Dual {
		return errors.New("cluster: this kernel has no IPv6; ask for IP family " + IPv4)
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	m, err := c.prepare(ctx)
	if err != nil {
		return err
	}
	s := &state{IPFamily: o.IPFamily, Image: m.image()}
	if c.isolated() {
		s.DataRoot = filepath.Join(c.store.Dir(), "docker")
	}
	there, err := c.settle(ctx, s)
	if err != nil {
		return err
	}
	if there {
		return c.loadTools(ctx, m)
	}
	if err := c.create(ctx, s, m); err != nil {
		c.log.Error("removing what was made", "because", err)
		// ctx may be the reason; removing is bounded by itself.
		return errors.Join(err, c.down(context.WithoutCancel(ctx)))
	}
	return errors.Join(
		c.store.Prune("node", filepath.Dir(m.node.Archive), keepImages),
		c.store.Prune("tools", filepath.Dir(m.tools), keepImages),
	)
}

// material is what a cluster is made of.
type material struct {
	node  node.Build
	stock string // KIND_NODE_IMAGE, instead of node
	tools string // archive of the tools image
}

func (m material) image() string {
	if m.stock != "" {
		return m.stock
	}
	return m.node.Image
}

// prepare makes everything that needs no cluster.
func (c *Cluster) prepare(ctx context.Context) (material, error) {
	m := material{stock: c.image}
	if err := c.installPackages(ctx); err != nil {
		return m, err
	}
	debian, err := node.Debian(ctx, c.store, c.source)
	if err != nil {
		return m, fmt.Errorf("cluster: %w", err)
	}
	if m.tools, err = tools.Archive(ctx, c.store, c.source, debian); err != nil {
		return m, fmt.Errorf("cluster: %w", err)
	}
	if !c.isolated() {
		return m, nil
	}
	set, err := binaries.Build(ctx, c.store, c.source)
	if err != nil {
		return m, fmt.Errorf("cluster: %w", err)
	}
	if m.node, err = node.Make(ctx, c.store, c.source, debian, set); err != nil {
		return m, fmt.Errorf("cluster: %w", err)
	}
	return m, nil
}

// loadTools gives the nodes the tools image, unless they have it.
func (c *Cluster) loadTools(ctx context.Context, m material) error {
	s, err := loadState()
	if err != nil {
		return err
	}
	if s == nil || s.Tools == m.tools {
		return nil
	}
	if err := c.LoadImage(ctx, m.tools); err != nil {
		return err
	}
	s.Tools = m.tools
	return s.save()
}

// settle looks at what is there already. It reports true if that is what was asked for.
func (c *Cluster) settle(ctx context.Context, want *state) (bool, error) {
	have, err := loadState()
	if err != nil {
		return false, err
	}
	if have == nil {
		return false, nil
	}
	if have.Ready && have.IPFamily == want.IPFamily && have.Image == want.Image {
		limit, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		if _, err := c.kubectl(limit, nil, "wait", "node", "--all", "--for=condition=Ready", "--timeout=20s"); err == nil {
			c.log.Info("the cluster is up already")
			return true, nil
		}
	}
	c.log.Info("removing an older cluster or what is left of it")
	return false, c.down(ctx)
}

// create makes the cluster from nothing.
func (c *Cluster) create(ctx context.Context, s *state, m material) error {
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	if err := s.save(); err != nil {
		return err
	}
	if c.isolated() {
		if err := c.createDocker(ctx, s, m.node); err != nil {
			return err
		}
	}
	if err := c.createNodes(ctx, s); err != nil {
		return err
	}
	if c.isolated() {
		if err := c.connectPods(ctx); err != nil {
			return err
		}
	}
	if err := c.openControlPlane(ctx); err != nil {
		return err
	}
	if err := c.waitReady(ctx); err != nil {
		return err
	}
	s.Ready = true
	if err := s.save(); err != nil {
		return err
	}
	return c.loadTools(ctx, m)
}

// createDocker starts a docker daemon that has the node image.
func (c *Cluster) createDocker(ctx context.Context, s *state, build node.Build) error {
	err := raiseSysctls("/proc/sys", func(name, value string) error {
		if s.Sysctls == nil {
			s.Sysctls = map[string]string{}
		}
		s.Sysctls[name] = value
		return s.save()
	})
	if err != nil {
		return err
	}
	const modules = "/lib/modules" // nodes mount it, and docker makes what it cannot find
	if _, err := os.Stat(modules); err != nil {
		s.Folders = append(s.Folders, modules)
		if err := s.save(); err != nil {
			return err
		}
	}
	// One that is there although there is no state is of nobody any more.
	if err := errors.Join(deleteNamespace(c.Netns()), makeNamespace(c.Netns())); err != nil {
		return err
	}
	if err := c.startDocker(ctx, s.DataRoot); err != nil {
		return err
	}
	if err := c.removeContainers(ctx); err != nil { // of a daemon that was killed
		return err
	}
	return c.loadNodeImage(ctx, build)
}

// createNodes lets kind make the nodes and start Kubernetes on them.
func (c *Cluster) createNodes(ctx context.Context, s *state) error {
	kind, err := binaries.Kind(ctx, c.store, c.source)
	if err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	config, err := kindConfig(s.IPFamily, c.isolated())
	if err != nil {
		return err
	}
	c.log.Info("creating the cluster", "ipFamily", s.IPFamily, "image", s.Image)
	args := []string{"create", "cluster", "--config=-", "--image=" + s.Image, "--kubeconfig=" + c.Kubeconfig()}
	cmd := command{stdin: strings.NewReader(config), limit: createLimit, env: c.dockerEnv()}
	if c.isolated() {
		args = append(args, "--retain") // its own clean-up would take the logs along
	}
	if _, err := cmd.run(ctx, kind, args...); err != nil {
		return fmt.Errorf("cluster: %w%s", err, c.nodeLogs(context.WithoutCancel(ctx)))
	}
	return nil
}

// nodeLogs returns the ends of the nodes' logs, as an explanation of why they were not made.
func (c *Cluster) nodeLogs(ctx context.Context) string {
	var logs strings.Builder
	for _, name := range nodeNames() {
		const script = "journalctl --no-pager --lines=25 --unit=kubelet --unit=containerd --unit=e2e-images"
		out, err := c.exec(ctx, name, command{limit: 10 * time.Second}, "sh", "-c", script)
		if err != nil {
			out, _ = c.docker(ctx, command{limit: 10 * time.Second}, "logs", "--tail=25", name)
		}
		fmt.Fprintf(&logs, "\n--- %s\n%s", name, out)
	}
	return logs.String()
}

// openControlPlane lets ordinary pods run on the control plane's node as well.
func (c *Cluster) openControlPlane(ctx context.Context) error {
	const taint = "node-role.kubernetes.io/control-plane"
	out, err := c.kubectl(ctx, nil, "get", "node", ControlPlane, "--output=jsonpath={.spec.taints[*].key}")
	if err != nil {
		return fmt.Errorf("cluster: taints of %s: %w", ControlPlane, err)
	}
	if !strings.Contains(out, taint) {
		return nil
	}
	if _, err := c.kubectl(ctx, nil, "taint", "node", ControlPlane, taint+"-"); err != nil {
		return fmt.Errorf("cluster: let pods run on %s: %w", ControlPlane, err)
	}
	return nil
}
