package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/culvert-mesh/culvert/agent/enroll/cni"
)

const (
	agentNamespace = "culvert-system"
	agentDaemonSet = "culvert-agent"
	agentProgram   = "scaled-agent"
	// syncTime bounds how long an agent may take to read the cluster, and to enrol its pods.
	syncTime = 5 * time.Minute
	// additions is how many pods kubelet starts at a time.
	additions = 4
)

func (p *place) bpffs() string     { return filepath.Join(p.node.BPFFS, "culvert") }
func (p *place) cniSocket() string { return filepath.Join(p.data, "cni.sock") }
func (p *place) criSocket() string { return filepath.Join(p.data, "cri.sock") }
func (p *place) agentDir() string  { return filepath.Join(p.data, "agent") }

// agent is a running agent and what its log told so far.
type agent struct {
	*process
	begin time.Time
	marks *marks
}

// startAgent runs the real thing, as its DaemonSet does.
func startAgent(ctx context.Context, c *cluster, identities *authority, o options) (*agent, error) {
	p := c.place
	conf, bin := filepath.Join(p.agentDir(), "net.d"), filepath.Join(p.agentDir(), "cni")
	for _, dir := range []string{p.agentDir(), conf, bin} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("folder of the agent: %w", err)
		}
	}
	list := []byte(`{"cniVersion":"1.0.0","name":"scale","plugins":[{"type":"ptp"}]}`)
	if err := os.WriteFile(filepath.Join(conf, "10-scale.conflist"), list, 0o644); err != nil {
		return nil, fmt.Errorf("configuration of CNI: %w", err)
	}
	// A name that no other process has, for whoever looks for it with perf.
	program := filepath.Join(p.agentDir(), agentProgram)
	if err := os.Symlink(o.agent, program); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("folder of the agent: %w", err)
	}
	argv := []string{
		program, "agent", "--kube", "--kubeconfig", c.kubeconfig, "--node", localNode,
		"--namespace", agentNamespace, "--daemonset", agentDaemonSet,
		"--bpffs", p.bpffs(), "--cgroup", p.node.Cgroup, "--control", filepath.Join(p.agentDir(), "control.sock"),
		"--trust-domain", trustDomain, "--ca-address", caAddress, "--ca-server-name", caName,
		"--ca-token", identities.token, "--ca-roots", identities.roots,
		"--cni-socket", p.cniSocket(), "--cni-conf-dir", conf, "--cni-bin-dir", bin,
		"--cni-plugin", filepath.Join(filepath.Dir(o.agent), "culvert-cni"),
		"--cri-socket", p.criSocket(), "--kubelet-cgroup", "", "--log-format", "json",
	}
	argv = append(argv, strings.Fields(o.agentFlags)...)
	a := &agent{marks: newMarks(), begin: time.Now()}
	var err error
	if a.process, err = p.start(ctx, "agent", a.marks, argv...); err != nil {
		return nil, err
	}
	return a, nil
}

// stopIfStarted may be called without an agent.
func (a *agent) stopIfStarted() {
	if a != nil {
		a.stop()
	}
}

// synced waits for the first snapshot and returns how long it took.
func (a *agent) synced(ctx context.Context) (time.Duration, error) {
	if err := a.await(ctx, syncTime, "synced", func() bool { return a.marks.count("snapshot applied") > 0 }); err != nil {
		return 0, err
	}
	return a.marks.first("snapshot applied").Sub(a.begin), nil
}

// enrolled waits until that many pods are, and returns how long it took since the start.
func (a *agent) enrolled(ctx context.Context, pods int) (time.Duration, error) {
	if err := a.await(ctx, syncTime, "done with enrolling", func() bool { return a.marks.count("pod enrolled") >= pods }); err != nil {
		return 0, fmt.Errorf("%d of %d pods enrolled: %w", a.marks.count("pod enrolled"), pods, err)
	}
	return a.marks.last("pod enrolled").Sub(a.begin), nil
}

// announce tells the agent of each pod, as the CNI plugin does when a pod starts, and returns how long the answers
// took, in order.
func announce(ctx context.Context, c *cluster, pods []*sampled, runtime *containerRuntime) ([]time.Duration, error) {
	var mu sync.Mutex
	var times []time.Duration
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(additions)
	for _, pod := range pods {
		all.Go(func() error {
			begin := time.Now()
			if err := pod.announce(ctx, c.place.cniSocket()); err != nil {
				return fmt.Errorf("pod %s/%s: %w", pod.slot.namespace, pod.slot.name(), err)
			}
			took := time.Since(begin)
			runtime.add(pod)
			mu.Lock()
			times = append(times, took)
			mu.Unlock()
			return c.runPod(ctx, pod.slot)
		})
	}
	err := all.Wait()
	slices.Sort(times)
	return times, err
}

func (p *sampled) announce(ctx context.Context, socket string) error {
	netns, err := os.Open(p.slot.local.NetnsPath)
	if err != nil {
		return err
	}
	defer netns.Close()
	answer, err := cni.Call(ctx, socket, &cni.Request{
		Command: cni.Add, ContainerID: p.container(), IfName: "eth0", NetnsPath: p.slot.local.NetnsPath,
		PodNamespace: p.slot.namespace, PodName: p.slot.name(), PodUID: p.slot.uid, Addresses: p.slot.addresses,
	}, netns)
	switch {
	case err != nil:
		return err
	case answer.Error != nil:
		return answer.Error
	case !answer.Enrolled:
		return errors.New("not enrolled: " + answer.Reason)
	}
	return nil
}

// marks are the times of log messages.
type marks struct {
	mu    sync.Mutex
	part  bytes.Buffer // of a line
	times map[string][]time.Time
}

var _ io.Writer = (*marks)(nil)

// markMost bounds what is kept of one message.
const markMost = 10_000

func newMarks() *marks { return &marks{times: map[string][]time.Time{}} }

// Write implements io.Writer. It takes the log, in JSON.
func (m *marks) Write(b []byte) (int, error) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.part.Write(b)
	for bytes.IndexByte(m.part.Bytes(), '\n') >= 0 {
		line, _ := m.part.ReadBytes('\n')
		var entry struct {
			Message string `json:"msg"`
		}
		if json.Unmarshal(line, &entry) == nil && len(m.times[entry.Message]) < markMost {
			m.times[entry.Message] = append(m.times[entry.Message], now)
		}
	}
	return len(b), nil
}

func (m *marks) count(message string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.times[message])
}

func (m *marks) first(message string) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.times[message][0]
}

func (m *marks) last(message string) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := m.times[message]
	return all[len(all)-1]
}

// complaints counts the lines of a log that are warnings or errors, and returns the first few.
func complaints(log string) (count int, some []string, err error) {
	f, err := os.Open(log)
	if err != nil {
		return 0, nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if !bytes.Contains(lines.Bytes(), []byte(`"level":"ERROR"`)) && !bytes.Contains(lines.Bytes(), []byte(`"level":"WARN"`)) {
			continue
		}
		if count++; len(some) < maxFailures {
			some = append(some, lines.Text())
		}
	}
	return count, some, lines.Err()
}
