// Package lab builds nodes and pods out of network namespaces, on one machine and without a
// container runtime. The demo, the privileged tests and the benchmarks all run on it.
//
//	  node a                           node b
//	+---------------------+          +---------------------+
//	| pod  pod  pod       |   veth   |       pod  pod  pod |
//	|  \    |   /         |          |         \   |    /  |
//	|   routed     to-b --+----------+-- to-a     routed   |
//	+---------------------+          +---------------------+
//
// Every pod has an eth0 with one IPv4 and one IPv6 address and default routes to its node; a node
// forwards between its pods and to the other nodes and knows no way out of the lab. Each node and
// each pod has a cgroup, and processes start inside theirs, so an agent can be attached to "its"
// node's cgroup as on a real machine.
//
// Whatever is made is written down in the run directory before it is made. A later process can
// therefore take everything down after a crash: see [Down].
//
// Needs root and Linux 5.14 (cgroup.kill) with cgroup2 mounted anywhere.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"sync"
)

// Addresses. Namespaces keep labs apart, so every lab may use the same ones.
const (
	// ServiceCIDR4 and ServiceCIDR6 are never given to a pod and never routed: whoever plays
	// Kubernetes in the lab may use them for Services.
	ServiceCIDR4 = "10.77.255.0/24"
	ServiceCIDR6 = "fd77:0:0:ffff::/112"

	maxNodes = 200
	maxPods  = 240
	firstPod = 10
)

// Options says what the lab is called and where it keeps its files.
type Options struct {
	// Prefix begins the name of every namespace and is the name of the lab's cgroup.
	Prefix string
	// RunDir is created, and removed by Close and Down. It must not exist or be empty.
	RunDir string
}

// Lab is a set of nodes. Its methods may be called concurrently.
type Lab struct {
	prefix     string
	runDir     string
	cgroup     string // of the whole lab
	cgroupRoot string // where cgroup2 is mounted
	record     *record

	mu    sync.Mutex // guards nodes and, in each node, pods and links
	nodes []*Node

	closeOnce sync.Once
	closeErr  error
}

var validPrefix = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}$`)

// New starts an empty lab. An *InTheWayError names leftovers of an earlier one.
func New(ctx context.Context, o Options) (*Lab, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("lab: network namespaces and cgroups need root")
	}
	if !validPrefix.MatchString(o.Prefix) {
		return nil, fmt.Errorf("lab: prefix %q is not made of lower-case letters, digits and dashes", o.Prefix)
	}
	runDir, err := cleanRunDir(o.RunDir)
	if err != nil {
		return nil, err
	}
	root, err := cgroup2Mount()
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	l := &Lab{prefix: o.Prefix, runDir: runDir, cgroupRoot: root, cgroup: filepath.Join(root, o.Prefix)}
	if err := l.inTheWay(); err != nil {
		return nil, err
	}
	if err := l.begin(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// begin makes the run directory, the record and the lab's cgroup. The run directory can be
// passed through by anybody, because unprivileged processes have sockets in it; what is in it has
// modes of its own.
func (l *Lab) begin() error {
	if err := os.MkdirAll(l.runDir, 0o711); err != nil {
		return fmt.Errorf("lab: make run directory: %w", err)
	}
	if err := os.Chmod(l.runDir, 0o711); err != nil {
		return fmt.Errorf("lab: make run directory: %w", err)
	}
	r, err := newRecord(l.runDir, l.prefix, l.cgroupRoot)
	if err != nil {
		return err
	}
	l.record = r
	if err := makeNetnsDir(r); err != nil {
		return err
	}
	return l.makeCgroup(l.cgroup)
}

// RunDir is the directory of the lab; users may keep files in it, which go with it.
func (l *Lab) RunDir() string { return l.runDir }

// Nodes returns the nodes in the order of their making.
func (l *Lab) Nodes() []*Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*Node(nil), l.nodes...)
}

// PodCIDRs returns the ranges that the pods of all nodes have their addresses from.
func (l *Lab) PodCIDRs() []netip.Prefix {
	var all []netip.Prefix
	for _, n := range l.Nodes() {
		all = append(all, n.CIDR4, n.CIDR6)
	}
	return all
}

// Close ends every process of the lab and removes all that was made. It may be called again.
func (l *Lab) Close() error {
	l.closeOnce.Do(func() {
		if l.record == nil { // nothing but, perhaps, an empty run directory was made
			if err := os.Remove(l.runDir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				l.closeErr = fmt.Errorf("lab: remove run directory: %w", err)
			}
			return
		}
		l.closeErr = l.record.close()
	})
	return l.closeErr
}

func cleanRunDir(dir string) (string, error) {
	if dir == "" {
		return "", errors.New("lab: no run directory given")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("lab: run directory: %w", err)
	}
	if filepath.Dir(abs) == abs {
		return "", errors.New("lab: the run directory cannot be /")
	}
	return abs, nil
}
