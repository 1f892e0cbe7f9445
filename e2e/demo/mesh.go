package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/culvert-mesh/culvert/e2e/lab"
)

const (
	// DefaultRunDir is where the demo lives while it runs.
	DefaultRunDir = "/run/culvert-demo"
	// DefaultPrefix begins the names of its namespaces and is that of its cgroup.
	DefaultPrefix = "culvert-demo"

	tunnelUID = 61508
	svidLife  = 20 * time.Second

	// settle is how long an agent may take to say that it applied a change; what it says is only a
	// reason to begin looking, the rows decide.
	settle         = 5 * time.Second
	requestTimeout = 3 * time.Second
)

// Mesh is the walkthrough's lab with an agent and a tunnel on each node and a server in each pod.
type Mesh struct {
	binary    string
	lab       *lab.Lab
	configDir string
	logDir    string
	pods      map[string]*lab.Pod
	nodes     []*Node
	cert, key []byte
}

// Node is one node's pair of processes.
type Node struct {
	lab           *lab.Node
	control       string
	agent, tunnel *daemon
}

// MeshOptions says what to start and where.
type MeshOptions struct {
	Binary   string // the culvert program; default: this one
	RunDir   string
	Prefix   string
	Progress func(string) // may be nil
}

// StartMesh builds the lab and starts everything on it. Close it, also after an error.
func StartMesh(ctx context.Context, o MeshOptions) (*Mesh, error) {
	m := &Mesh{binary: o.Binary, pods: map[string]*lab.Pod{}}
	progress := o.Progress
	if progress == nil {
		progress = func(string) {}
	}
	var err error
	if m.binary == "" {
		if m.binary, err = os.Executable(); err != nil {
			return m, fmt.Errorf("demo: own program: %w", err)
		}
	}
	if m.cert, m.key, err = newRoot(); err != nil {
		return m, err
	}
	progress("building two nodes and seven pods from network namespaces")
	if err := m.build(ctx, o); err != nil {
		return m, err
	}
	progress("starting a server in each pod")
	for _, s := range podSpecs() {
		if err := m.serve(ctx, s); err != nil {
			return m, err
		}
	}
	progress("starting agent (root) and tunnel (uid 61508, no capabilities) on each node")
	for _, n := range m.nodes {
		if err := n.agent.start(ctx); err != nil {
			return m, err
		}
	}
	for _, n := range m.nodes {
		if err := n.startTunnel(ctx); err != nil {
			return m, err
		}
	}
	progress("waiting until pods are enrolled")
	return m, m.waitReady(ctx)
}

func (m *Mesh) build(ctx context.Context, o MeshOptions) error {
	var err error
	if m.lab, err = lab.New(ctx, lab.Options{Prefix: o.Prefix, RunDir: o.RunDir}); err != nil {
		return err
	}
	m.configDir, m.logDir = filepath.Join(m.lab.RunDir(), "config"), filepath.Join(m.lab.RunDir(), "logs")
	for _, dir := range []string{m.configDir, m.logDir} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return fmt.Errorf("demo: run directory: %w", err)
		}
	}
	nodes := map[string]*lab.Node{}
	for _, name := range []string{"a", "b"} {
		if nodes[name], err = m.lab.AddNode(name); err != nil {
			return err
		}
	}
	for _, s := range podSpecs() {
		if m.pods[s.ref()], err = m.lab.AddPod(nodes[s.node], s.namespace, s.name); err != nil {
			return err
		}
	}
	for _, n := range m.lab.Nodes() {
		m.nodes = append(m.nodes, m.newNode(n))
	}
	return m.writeCluster()
}

func (m *Mesh) newNode(l *lab.Node) *Node {
	n := &Node{lab: l, control: filepath.Join(l.Dir, "control.sock")}
	n.agent = &daemon{name: "agent of node " + l.Name, log: logFile{path: filepath.Join(m.logDir, "agent-"+l.Name+".log")}}
	n.agent.command = func(ctx context.Context) (*lab.Cmd, []*os.File, error) {
		cert, err := lab.MemoryFile("ca-cert", m.cert)
		if err != nil {
			return nil, nil, err
		}
		key, err := lab.MemoryFile("ca-key", m.key)
		if err != nil {
			return nil, nil, errors.Join(err, cert.Close())
		}
		return l.Command(ctx, m.agentArguments(n)...), []*os.File{cert, key}, nil
	}
	n.tunnel = &daemon{name: "tunnel of node " + l.Name, log: logFile{path: filepath.Join(m.logDir, "tunnel-"+l.Name+".log")}}
	n.tunnel.command = func(ctx context.Context) (*lab.Cmd, []*os.File, error) {
		return l.IsolatedCommand(ctx, m.binary, "demo", "workload", "unprivileged", strconv.Itoa(tunnelUID), "--",
			"tunnel", "--control", n.control, "--log-format", "json", "--log-level", "debug"), nil, nil
	}
	return n
}

// statusAddress is where the agent of a node answers, in the node's network namespace.
const statusAddress = "127.0.0.1:15020"

func (m *Mesh) agentArguments(n *Node) []string {
	argv := []string{
		m.binary, "agent", "--status-address", statusAddress, "--config", m.configDir, "--node", n.lab.Name, "--bpffs", n.lab.BPFFS, "--cgroup", n.lab.Cgroup,
		"--control", n.control, "--tunnel-uid", strconv.Itoa(tunnelUID), "--trust-domain", trustDomain,
		"--svid-ttl", svidLife.String(), "--ca-cert", "/dev/fd/3", "--ca-key", "/dev/fd/4",
		"--log-format", "json", "--log-level", "debug",
		"--mesh-cidr", lab.ServiceCIDR4, "--mesh-cidr", lab.ServiceCIDR6,
	}
	for _, c := range m.lab.PodCIDRs() {
		argv = append(argv, "--mesh-cidr", c.String())
	}
	return argv
}

// startTunnel waits for the agent's socket first, so that the log begins without complaints.
func (n *Node) startTunnel(ctx context.Context) error {
	err := poll(ctx, settle, func() (bool, error) {
		_, err := os.Stat(n.control)
		return err == nil, n.agent.check()
	})
	if err != nil {
		return fmt.Errorf("demo: control socket %s: %w", n.control, err)
	}
	return n.tunnel.start(ctx)
}

// serve starts the HTTP server of a pod. It is killed with the lab.
func (m *Mesh) serve(ctx context.Context, s podSpec) error {
	cmd := m.pods[s.ref()].Command(context.WithoutCancel(ctx), m.binary, "demo", "workload", "serve",
		"--name", s.ref(), "--listen", ":9080", "--listen", ":9090")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("demo: server of %s: %w", s.ref(), err)
	}
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("demo: start server of %s: %w", s.ref(), err)
	}
	ready, err := bufio.NewReader(out).ReadString('\n')
	if ready != "ready\n" {
		return fmt.Errorf("demo: server of %s: %w: %s", s.ref(), errors.Join(err, cmd.Process.Kill(), cmd.Wait()), complaint.String())
	}
	return nil
}

// waitReady waits for the first request that went through the mesh, both ways between the nodes.
func (m *Mesh) waitReady(ctx context.Context) error {
	for _, pair := range [][2]string{{"test/nginx", "default/productpage"}, {"web/frontend", "default/payment"}} {
		var last Attempt
		err := poll(ctx, 15*time.Second, func() (bool, error) {
			last = m.Request(ctx, pair[0], netip.AddrPortFrom(serviceAddress(pair[1], 4), 9080), "readiness")
			return last.OK, m.Check()
		})
		if err != nil {
			return fmt.Errorf("demo: %s cannot reach %s: %w; last attempt: %s", pair[0], pair[1], err, last.Error)
		}
	}
	return nil
}

// Request makes one HTTP request by a process of its own in the pod.
func (m *Mesh) Request(ctx context.Context, from string, to netip.AddrPort, marker string) Attempt {
	cmd := m.pods[from].Command(ctx, m.binary, "demo", "workload", "request", "http://"+to.String()+"/",
		"--marker", marker, "--timeout", requestTimeout.String())
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	var a Attempt
	if decode := json.Unmarshal(out, &a); decode != nil {
		a.Error = fmt.Sprintf("client process: %v: %s", errors.Join(err, decode), complaint.String())
	}
	return a
}

// PodAddr is the address of a port of the pod.
func (m *Mesh) PodAddr(ref string, version int, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(m.pods[ref].IP(version), port)
}

// ServiceAddr is the address of a port of the pod's Service.
func (m *Mesh) ServiceAddr(ref string, version int, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(serviceAddress(ref, version), port)
}

// Apply makes the named policies of the manifests folder, and no others, hold, and waits until both agents say so.
func (m *Mesh) Apply(ctx context.Context, names ...string) error {
	const message = "snapshot applied"
	before := make([]int, len(m.nodes))
	for i, n := range m.nodes {
		count, err := n.agent.countMessage(message)
		if err != nil {
			return err
		}
		before[i] = count
	}
	changed, err := m.setPolicies(names)
	if err != nil || !changed {
		return err
	}
	for i, n := range m.nodes {
		err := poll(ctx, settle, func() (bool, error) {
			count, err := n.agent.countMessage(message)
			return count > before[i], errors.Join(err, n.agent.check())
		})
		if err != nil {
			return fmt.Errorf("demo: %s has not applied the change: %w", n.agent.name, err)
		}
	}
	return nil
}

// Node returns a node of the lab, a or b.
func (m *Mesh) Node(name string) *lab.Node { return m.node(name).lab }

// AdminSocket is where root asks the agent of a node.
func (m *Mesh) AdminSocket(node string) string {
	return filepath.Join(filepath.Dir(m.node(node).control), "admin.sock")
}

// PageURL is the page of a node, in the node's network namespace.
func (m *Mesh) PageURL() string { return "http://" + statusAddress + "/" }

// Binary is the program that runs.
func (m *Mesh) Binary() string { return m.binary }

func (m *Mesh) node(name string) *Node {
	for _, n := range m.nodes {
		if n.lab.Name == name {
			return n
		}
	}
	panic("demo: no node " + name)
}

// Netns is the path of a pod's network namespace.
func (m *Mesh) Netns(ref string) string { return m.pods[ref].NetnsPath }

// Check returns an error when an agent or a tunnel ended by itself.
func (m *Mesh) Check() error {
	var errs []error
	for _, n := range m.nodes {
		errs = append(errs, n.agent.check(), n.tunnel.check())
	}
	return errors.Join(errs...)
}

// Kill ends a process of every node without warning: "agent" or "tunnel".
func (m *Mesh) Kill(which string) {
	for _, n := range m.nodes {
		n.daemon(which).stop(syscall.SIGKILL)
	}
}

// Start begins a killed process of every node again.
func (m *Mesh) Start(ctx context.Context, which string) error {
	var errs []error
	for _, n := range m.nodes {
		errs = append(errs, n.daemon(which).start(ctx))
	}
	return errors.Join(errs...)
}

func (n *Node) daemon(which string) *daemon {
	if which == "agent" {
		return n.agent
	}
	return n.tunnel
}

// Close stops everything and removes the lab.
func (m *Mesh) Close() error {
	if m.lab == nil {
		return nil
	}
	for _, n := range m.nodes {
		n.tunnel.stop(syscall.SIGTERM)
	}
	for _, n := range m.nodes {
		n.agent.stop(syscall.SIGTERM)
	}
	return m.lab.Close()
}

var errTimedOut = errors.New("timed out")

// poll calls done until it is true, fails, or the time is up.
func poll(ctx context.Context, limit time.Duration, done func() (bool, error)) error {
	for deadline := time.Now().Add(limit); ; {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w after %s", errTimedOut, limit)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}
