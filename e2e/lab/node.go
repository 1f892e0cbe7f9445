package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"
)

// Node is a namespace that forwards between its pods and the other nodes.
type Node struct {
	Name         string
	NetnsPath    string
	Cgroup       string // of the node and all of its pods: what the node's agent attaches to
	Dir          string // below the run directory, for sockets; unprivileged processes can pass through
	BPFFS        string // a bpf file system of the node's own
	CIDR4, CIDR6 netip.Prefix

	lab       *Lab
	index     int // from 1
	processes string
	links     []string // interfaces that lead to other nodes
	pods      []*Pod
}

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?$`)

// AddNode makes a node, with a link to every node that exists already.
// The name becomes part of an interface name and is therefore short: at most ten characters.
func (l *Lab) AddNode(name string) (*Node, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !validName.MatchString(name) {
		return nil, fmt.Errorf("lab: node name %q: want at most ten lower-case letters, digits and dashes", name)
	}
	for _, n := range l.nodes {
		if n.Name == name {
			return nil, fmt.Errorf("lab: node %s exists", name)
		}
	}
	if len(l.nodes) == maxNodes {
		return nil, errors.New("lab: too many nodes")
	}
	n := &Node{Name: name, lab: l, index: len(l.nodes) + 1}
	n.CIDR4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(n.index), 0}), 24)
	n.CIDR6 = netip.PrefixFrom(address6(uint16(n.index), 0), 64)
	if err := n.make(); err != nil {
		return nil, err
	}
	for _, other := range l.nodes {
		if err := connectNodes(n, other); err != nil {
			return nil, fmt.Errorf("lab: link %s to %s: %w", n.Name, other.Name, err)
		}
	}
	l.nodes = append(l.nodes, n)
	return n, nil
}

func (n *Node) make() error {
	var err error
	if n.NetnsPath, err = n.lab.makeNamespace(n.lab.prefix+"-node-"+n.Name, true); err != nil {
		return err
	}
	n.Cgroup = filepath.Join(n.lab.cgroup, n.Name)
	n.processes = filepath.Join(n.Cgroup, "node")
	for _, c := range []string{n.Cgroup, n.processes} {
		if err := n.lab.makeCgroup(c); err != nil {
			return err
		}
	}
	n.Dir = filepath.Join(n.lab.runDir, n.Name)
	if err := os.Mkdir(n.Dir, 0o711); err != nil {
		return fmt.Errorf("lab: make directory of node: %w", err)
	}
	n.BPFFS = filepath.Join(n.Dir, "bpf")
	if err := os.Mkdir(n.BPFFS, 0o700); err != nil {
		return fmt.Errorf("lab: make mount point: %w", err)
	}
	if err := unix.Mount("bpf", n.BPFFS, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("lab: mount bpf file system on %s: %w", n.BPFFS, err)
	}
	return setUpLoopback(n.NetnsPath)
}

// address4 and address6 are the addresses of the node on its links.
func (n *Node) address4() netip.Addr { return netip.AddrFrom4([4]byte{10, 77, 0, byte(n.index)}) }
func (n *Node) address6() netip.Addr { return address6(0, uint16(n.index)) }

// address6 is fd77:0:0:subnet::host.
func address6(subnet, host uint16) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x77, 6: byte(subnet >> 8), 7: byte(subnet), 14: byte(host >> 8), 15: byte(host)})
}

// Command prepares a process in the node's namespace and cgroup.
func (n *Node) Command(ctx context.Context, argv ...string) *Cmd {
	return n.lab.command(ctx, n.NetnsPath, n.processes, argv)
}

// IsolatedCommand prepares a process in the node's cgroup, with a network namespace of its own in
// which there is nothing, not even a loopback that is up. It vanishes with the process.
func (n *Node) IsolatedCommand(ctx context.Context, argv ...string) *Cmd {
	return n.lab.command(ctx, "", n.processes, argv)
}

// Do runs fn on a thread inside the node's network namespace, but in the caller's cgroup.
func (n *Node) Do(fn func() error) error { return inNamespace(n.NetnsPath, fn) }
