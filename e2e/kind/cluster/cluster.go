// Package cluster makes, uses and removes the Kubernetes cluster of the end-to-end tests: two kind nodes, culvert-control-plane
// and culvert-worker, both of which run pods.
//
// Ordinarily docker's daemon runs in a network namespace of its own, which has no way out: it rewrites nobody else's
// firewall rules, and a Service address that no rule catches leads nowhere instead of to strangers. The cluster's
// addresses are therefore reachable through DialContext and Kubectl only.
//
// With KIND_NODE_IMAGE set, kind uses that image and the machine's own docker. With E2E_KUBECONFIG set nothing is made;
// what needs no access to nodes works against that cluster.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/culvert-mesh/culvert/e2e/kind/artifact"
)

const (
	// Name is kind's name of the cluster; nodes are named after it.
	Name = "culvert"
	// ControlPlane and Worker are the nodes, as containers and in Kubernetes.
	ControlPlane = Name + "-control-plane"
	Worker       = Name + "-worker"

	namespaceName = "culvert-e2e"
	runDir        = "/run/culvert-e2e"
)

// ErrNoNodes is what methods return that need the nodes' containers when the cluster is somebody else's.
var ErrNoNodes = errors.New("E2E_KUBECONFIG names a cluster whose nodes cannot be reached from here")

// Cluster is the one cluster of this machine. It need not exist yet.
type Cluster struct {
	log        *slog.Logger
	store      *artifact.Store
	source     string
	kubeconfig string // E2E_KUBECONFIG
	image      string // KIND_NODE_IMAGE
}

// Config says what a Cluster needs to know.
type Config struct {
	Source string // folder e2e/kind of a checkout, whose modules are built
	Store  *artifact.Store
	Log    *slog.Logger
}

// New returns the cluster that the environment asks for, without looking whether it exists.
func New(c Config) *Cluster {
	return &Cluster{
		log: c.Log, store: c.Store, source: c.Source,
		kubeconfig: os.Getenv("E2E_KUBECONFIG"), image: os.Getenv("KIND_NODE_IMAGE"),
	}
}

// isolated reports whether the cluster has a docker daemon and a network namespace of its own.
func (c *Cluster) isolated() bool { return c.kubeconfig == "" && c.image == "" }

// Kubeconfig returns the path of the cluster's kubeconfig. Its server is reachable inside Netns only.
func (c *Cluster) Kubeconfig() string {
	if c.kubeconfig != "" {
		return c.kubeconfig
	}
	return filepath.Join(runDir, "kubeconfig")
}

// Netns returns the path of the network namespace that the cluster is reachable in, or "" for this process's own.
func (c *Cluster) Netns() string {
	if !c.isolated() {
		return ""
	}
	return filepath.Join("/run/netns", namespaceName)
}

// lock keeps two processes from making or removing the cluster at the same time.
func (c *Cluster) lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	// Beside the folder, which down removes.
	unlock, err = artifact.Lock(ctx, runDir+".lock", func() { c.log.Info("waiting: another process makes or removes the cluster") })
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	return unlock, nil
}
