package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/observe"
	"github.com/culvert-mesh/culvert/agent/source/kube/exec"
)

// seeingNode is an agent that has seen what it was told.
type seeingNode struct {
	admin.Node
	memory    *observe.Recorder
	node      string
	readiness *admin.Readiness
	report    *admin.Bugreport
	err       error
}

func (n *seeingNode) Flows(ctx context.Context, after uint64, wait time.Duration) (*admin.FlowList, error) {
	l := &admin.FlowList{Node: n.node}
	if n.err != nil {
		return nil, n.err
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var err error
	if wait == 0 {
		l.Flows, l.Last, l.Missed = n.memory.Events(after)
	} else {
		l.Flows, l.Last, l.Missed, err = n.memory.Wait(ctx, after)
	}
	return l, err
}

func (n *seeingNode) Readiness(_ context.Context, namespace string, _ time.Duration) (*admin.Readiness, error) {
	if n.err != nil {
		return nil, n.err
	}
	r := *n.readiness
	r.Workloads = slices.DeleteFunc(slices.Clone(r.Workloads), func(w admin.Observed) bool { return namespace != "" && w.Namespace != namespace })
	return &r, nil
}

func (n *seeingNode) Bugreport(context.Context) (*admin.Bugreport, error) { return n.report, n.err }

func (n *seeingNode) Certificates(context.Context) (*admin.Certificates, error) {
	return identitiesOn(n.node, "shop/cart"), nil
}

// seeingCluster has nodes with agents behind sockets: Run runs this same command there.
type seeingCluster struct {
	cluster
	sockets map[string]string // by node; an empty one is an agent that does not answer
	old     bool              // all agents are older than these commands
	mu      sync.Mutex
	asked   []string
}

func (f *seeingCluster) NodeOf(context.Context, string) (string, error) {
	return "", errors.New("no pods")
}

func (f *seeingCluster) NamedNodes(context.Context) string {
	return "no pod in namespace culvert-system is an agent"
}

func (f *seeingCluster) AgentNodes(context.Context) (map[string]string, error) {
	nodes := map[string]string{}
	for node := range f.sockets {
		nodes[node] = ""
	}
	return nodes, nil
}

func (f *seeingCluster) Run(ctx context.Context, node string, args ...string) ([]byte, error) {
	f.mu.Lock()
	f.asked = append(f.asked, node+": "+strings.Join(args, " "))
	f.mu.Unlock()
	if f.old {
		return nil, &exec.ExitError{Code: 1, Stderr: fmt.Sprintf("culvert: unknown command %q for \"culvert\"", args[0])}
	}
	if f.sockets[node] == "" {
		return nil, fmt.Errorf("agent of node %s: no answer within 1m0s", node)
	}
	out, _, err := runSeeing(ctx, nil, append(args[:1:1], append([]string{"--admin-socket", f.sockets[node]}, args[1:]...)...)...)
	if err != nil {
		return []byte(out), fmt.Errorf("agent of node %s: %w", node, &exec.ExitError{Code: codeOf(err), Stderr: err.Error()})
	}
	return []byte(out), nil
}

// runSeeing runs one of the commands with this cluster, nil for a machine without a kubeconfig.
func runSeeing(ctx context.Context, f *seeingCluster, args ...string) (stdout, stderr string, err error) {
	everyNode := everyNode{reach{open: func(exec.Options) (cluster, error) {
		if f == nil {
			return nil, errors.New("API server: no kubeconfig is set")
		}
		return f, nil
	}}}
	commands := map[string]*cobra.Command{
		"flows":     flowsCommand(&flowsFlags{everyNode: everyNode}),
		"readiness": readinessCommand(&readinessFlags{everyNode: everyNode}),
		"bugreport": bugreportCommand(&bugreportFlags{everyNode: everyNode}),
		"loglevel":  logLevelCommand(&logLevelFlags{everyNode: everyNode}),
	}
	var out, errOut safeBuffer
	c := commands[args[0]]
	c.SilenceErrors, c.SilenceUsage = true, true
	understood(c)
	c.SetArgs(args[1:])
	c.SetOut(&out)
	c.SetErr(&errOut)
	err = c.ExecuteContext(ctx)
	return out.String(), errOut.String(), err
}

// safeBuffer is written by one goroutine and read by another.
type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func seenEvent(how observe.Carried, from, to string, port uint16) observe.Event {
	return observe.Event{Number: 1, Carried: how, Inbound: true, Opened: time.Now().Add(-2 * time.Second), Closed: time.Now(),
		Source:      observe.End{Workload: from, Address: netip.MustParseAddr("10.0.0.9"), Port: 4000},
		Destination: observe.End{Workload: to, Address: netip.MustParseAddr("10.0.0.1"), Port: port}}
}
