package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
)

// Pod is a namespace with one interface, eth0, that leads to its node.
type Pod struct {
	Namespace, Name string
	Node            *Node
	IP4, IP6        netip.Addr
	NetnsPath       string
	Cgroup          string
}

// AddPod makes a pod on the node. Namespace and name are Kubernetes names.
func (l *Lab) AddPod(node *Node, namespace, name string) (*Pod, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if node.lab != l {
		return nil, fmt.Errorf("lab: node %s belongs to another lab", node.Name)
	}
	for _, n := range []string{namespace, name} {
		if n == "" || strings.Trim(n, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return nil, fmt.Errorf("lab: pod %s/%s: %q is not a Kubernetes name", namespace, name, n)
		}
	}
	if len(node.pods) == maxPods {
		return nil, errors.New("lab: too many pods on node " + node.Name)
	}
	host := firstPod + len(node.pods)
	p := &Pod{
		Namespace: namespace, Name: name, Node: node,
		IP4:    netip.AddrFrom4([4]byte{10, 77, byte(node.index), byte(host)}),
		IP6:    address6(uint16(node.index), uint16(host)),
		Cgroup: filepath.Join(node.Cgroup, namespace+"_"+name), // a name has no underscore
	}
	var err error
	if p.NetnsPath, err = l.makeNamespace(l.prefix+"-pod-"+namespace+"_"+name, false); err != nil {
		return nil, err
	}
	if err := l.makeCgroup(p.Cgroup); err != nil {
		return nil, err
	}
	if err := connectPod(p, fmt.Sprintf("pod%d", host)); err != nil {
		return nil, fmt.Errorf("lab: attach pod %s: %w", p, err)
	}
	node.pods = append(node.pods, p)
	return p, nil
}

// String is the pod as "namespace/name".
func (p *Pod) String() string { return p.Namespace + "/" + p.Name }

// IP returns the pod's address of IP version 4 or 6.
func (p *Pod) IP(version int) netip.Addr {
	if version == 6 {
		return p.IP6
	}
	return p.IP4
}

// Command prepares a process in the pod's namespace and cgroup.
func (p *Pod) Command(ctx context.Context, argv ...string) *Cmd {
	return p.Node.lab.command(ctx, p.NetnsPath, p.Cgroup, argv)
}

// Do runs fn on a thread inside the pod's network namespace, but in the caller's cgroup.
func (p *Pod) Do(fn func() error) error { return inNamespace(p.NetnsPath, fn) }
