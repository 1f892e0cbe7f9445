package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/source/kube/exec"
)

// maxAsked is how many agents are asked at a time.
const maxAsked = 16

// everyNode says which agents are asked: those of all nodes through the API server, one's by --node, or this node's.
type everyNode struct{ reach }

func (e *everyNode) register(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&e.socket, "admin-socket", admin.DefaultSocket, "unix socket of this node's agent")
	flags.BoolVar(&e.local, "local", false, "ask this node's agent only, never the API server")
	flags.StringVar(&e.node, "node", "", "ask the agent of this node only, through the API server (default: all nodes)")
	flags.StringVar(&e.cluster.Kubeconfig, "kubeconfig", "", "file that says how the API server is reached (default: as kubectl does)")
	flags.StringVar(&e.cluster.Context, "context", "", "context of the kubeconfig (default: the current one)")
	flags.StringVar(&e.cluster.Namespace, "culvert-namespace", "culvert-system", "the agents' own namespace")
}

func (e *everyNode) check() error {
	if e.local && e.node != "" {
		return errors.New("--local and --node exclude each other")
	}
	return nil
}

// clusterNodes is a cluster that names the nodes that have an agent.
type clusterNodes interface {
	cluster
	Nodes(ctx context.Context) ([]string, error)
}

// agents finds out who is asked. Without a cluster, this node's agent alone is: then c is nil.
func (e *everyNode) agents(ctx context.Context, notes io.Writer) (c clusterNodes, nodes []string, err error) {
	if e.local {
		return nil, nil, nil
	}
	opened, err := e.open(e.cluster)
	if err != nil {
		if e.node == "" && e.askLocal() {
			fmt.Fprintf(notes, "note: this node's agent alone is asked: %v\n", err)
			return nil, nil, nil
		}
		return nil, nil, err
	}
	c, ok := opened.(clusterNodes)
	switch {
	case !ok:
		return nil, nil, errors.New("nodes of the cluster cannot be listed")
	case e.node != "":
		return c, []string{e.node}, nil
	}
	nodes, err = c.Nodes(ctx)
	if err == nil && len(nodes) == 0 {
		err = errors.New(c.NamedNodes(ctx))
	}
	if err != nil && e.askLocal() {
		err = fmt.Errorf("%w (with --local this node's agent alone is asked)", err)
	}
	return c, nodes, err
}

// told is what came of asking one agent.
type told[T any] struct {
	node   string
	answer *T
	err    error
}

// askAll asks each agent: this node's by its socket when there is no cluster, others by running the arguments there, which
// print the answer in JSON. Who does not answer is among what is returned; without a cluster that is an error.
func askAll[T any](ctx context.Context, e *everyNode, c clusterNodes, nodes []string, local func(*admin.Client) (*T, error), args ...string) ([]told[T], error) {
	if c == nil {
		answer, err := local(e.client())
		if err != nil {
			return nil, notRoot(err)
		}
		return []told[T]{{answer: answer}}, nil
	}
	all := make([]told[T], len(nodes))
	places := make(chan struct{}, maxAsked)
	var asked sync.WaitGroup
	for i, node := range nodes {
		asked.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			all[i].node = node
			all[i].answer, all[i].err = askNode[T](ctx, c, node, args)
		})
	}
	asked.Wait()
	return all, ctx.Err()
}

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

// noteSkews names the versions that differ from this one, once each.
func noteSkews(w io.Writer, versions []string) {
	slices.Sort(versions)
	for _, v := range slices.Compact(versions) {
		noteSkew(w, v)
	}
}

// interruptedAs is interrupted for a command of that name.
func interruptedAs(ctx context.Context, name string, err error) error {
	if err != nil && ctx.Err() != nil {
		return &exitError{code: 130, err: errors.New(name + ": interrupted")}
	}
	return err
}

func oneOf(flag, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return fmt.Errorf("%s %q: must be one of %s", flag, value, strings.Join(allowed, ", "))
}
