package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/source/kube/exec"
)

const (
	// maxAsked is how many agents are asked at a time, and nodeTimeout how long each may take.
	maxAsked    = 16
	nodeTimeout = 25 * time.Second
)

// everyNode is reach for commands about all nodes.
type everyNode struct{ reach }

// agentNode is a node that is to have an agent; trouble is why that cannot be asked.
type agentNode struct{ name, trouble string }

// agents finds out who is asked: all nodes through the API server, the one that --node names, or, then c is nil, this
// node's agent alone, which is all that a node without a kubeconfig has.
func (e *everyNode) agents(ctx context.Context, notes io.Writer) (c cluster, nodes []agentNode, err error) {
	if e.local {
		return nil, nil, nil
	}
	if e.node == "" && e.hasSocket() && !e.hasKubeconfig() {
		fmt.Fprintln(notes, "note: this node's agent alone is asked: API server: no kubeconfig is set")
		return nil, nil, nil
	}
	if c, err = e.open(e.cluster); err == nil {
		if e.node != "" {
			return c, []agentNode{{name: e.node}}, nil
		}
		if nodes, err = agentNodes(ctx, c); err == nil && len(nodes) == 0 {
			err = errors.New(c.NamedNodes(ctx))
		}
	}
	switch {
	case err == nil || e.node != "":
	case e.hasSocket():
		err = fmt.Errorf("%w (with --local this node's agent alone is asked)", err)
	case c == nil:
		err = fmt.Errorf("there is no agent's socket %s on this machine\n%w", e.socket, err)
	}
	return c, nodes, err
}

// agentNodes are the nodes that are to have an agent, by name.
func agentNodes(ctx context.Context, c cluster) ([]agentNode, error) {
	states, err := c.AgentNodes(ctx)
	nodes := make([]agentNode, 0, len(states))
	for name, trouble := range states {
		nodes = append(nodes, agentNode{name, trouble})
	}
	slices.SortFunc(nodes, func(a, b agentNode) int { return cmp.Compare(a.name, b.name) })
	return nodes, err
}

// told is what came of asking one agent.
type told[T any] struct {
	node   string
	answer *T
	err    error
}

// askAll asks each agent, and returns what came of it in the order of the nodes: this node's by its socket when there is
// no cluster, others by running the arguments there, which print the answer in JSON. Who does not answer is among what is
// returned; without a cluster that is an error.
func askAll[T any](ctx context.Context, e *everyNode, c cluster, nodes []agentNode, local func(*admin.Client) (*T, error), args ...string) ([]told[T], error) {
	if c == nil {
		answer, err := local(e.client())
		if err != nil {
			return nil, notRoot(err)
		}
		return []told[T]{{answer: answer}}, nil
	}
	return onEach(ctx, nodes, func(ctx context.Context, node string) (*T, error) { return askNode[T](ctx, c, node, args) })
}

// onEach calls ask for each node, some at a time. One that takes too long does not hold up the others.
func onEach[T any](ctx context.Context, nodes []agentNode, ask func(context.Context, string) (*T, error)) ([]told[T], error) {
	all := make([]told[T], len(nodes))
	places := make(chan struct{}, maxAsked)
	var asked sync.WaitGroup
	for i, node := range nodes {
		all[i].node = node.name
		if node.trouble != "" {
			all[i].err = errors.New(node.trouble)
			continue
		}
		places <- struct{}{}
		asked.Go(func() {
			defer func() { <-places }()
			ctx, cancel := context.WithTimeoutCause(ctx, nodeTimeout, fmt.Errorf("agent of node %s: no answer within %s", node.name, nodeTimeout))
			defer cancel()
			if all[i].answer, all[i].err = ask(ctx, node.name); all[i].err != nil && ctx.Err() != nil {
				all[i].err = context.Cause(ctx)
			}
		})
	}
	asked.Wait()
	return all, ctx.Err()
}

// askNode runs culvert with these arguments in a node's agent and reads its answer, that of bad news too.
func askNode[T any](ctx context.Context, c cluster, node string, args []string) (*T, error) {
	text, err := c.Run(ctx, node, args...)
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || len(text) == 0) {
		return nil, explainExit(err)
	}
	answer := new(T)
	if err := json.Unmarshal(text, answer); err != nil {
		return nil, fmt.Errorf("agent of node %s: answer: %w", node, err)
	}
	return answer, nil
}

// silent names the nodes that did not answer, and why.
func silent[T any](all []told[T]) []nodeError {
	var silent []nodeError
	for _, t := range all {
		if t.err != nil {
			silent = append(silent, nodeError{Node: t.node, Error: t.err.Error()})
		}
	}
	return silent
}

// nodeError says why nothing is known of a node.
type nodeError struct {
	Node  string `json:"node"`
	Error string `json:"error"`
}

// noteSkew says when agent and command are of different versions, which may explain what is missing.
func noteSkew(w io.Writer, agent string) {
	if agent != version {
		fmt.Fprintf(w, "note: the agent is Culvert %s, this is %s\n", plain(agent), version)
	}
}

// noteSkews names the versions that differ from this one, once each.
func noteSkews(w io.Writer, versions []string) {
	slices.Sort(versions)
	for _, v := range slices.Compact(versions) {
		noteSkew(w, v)
	}
}

func oneOf(flag, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return usage("%s %q: must be one of %s", flag, value, strings.Join(allowed, ", "))
}
