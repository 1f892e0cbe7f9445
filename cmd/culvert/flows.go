package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/observe"
)

const (
	// maxFollowed bounds how many nodes are followed at once: each takes a connection to the API server.
	maxFollowed = 64
	// followPause is how long to wait for an agent that did not answer.
	followPause = 3 * time.Second
	// followWait is how long a command in another node's agent waits for something to happen. It goes on when this one has
	// ended, and there are few who may wait.
	followWait = 5 * time.Second
)

func newFlowsCommand() *cobra.Command {
	return flowsCommand(&flowsFlags{everyNode: everyNode{reach{open: openCluster}}})
}

func flowsCommand(f *flowsFlags) *cobra.Command {
	c := &cobra.Command{
		Use:   "flows",
		Short: "Show connections and refusals as they happen",
		Long: `Show the latest connections of pods in the mesh, how they were carried, and those that were refused, with the reason.
Agents remember the latest 4,096 of their node. Connections shorter than a second are told when they are over; of plaintext
that came from outside of the mesh the kernel tells peer and number, within seconds.

All nodes are asked through the API server; on a node without a kubeconfig, or with --local, its agent alone. What crosses
nodes is told by both. -n chooses those with either side in that namespace; -o json writes one object a line. The exit code
is 1 if a node does not answer.

With -f, a node that does not answer is asked again until it does. It then tells what it missed to tell; one that has not
answered before, what --since asks for, and without --since what has happened since the command was started.`,
		Example: `  culvert flows -f --namespace shop
  culvert flows --carried refused --since 10m
  culvert flows --from shop/cart --port 5432 -o json`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			return finished(c, f.run(c))
		},
	}
	f.register(c)
	flags := c.Flags()
	flags.BoolVarP(&f.follow, "follow", "f", false, "go on until interrupted")
	flags.StringVarP(&f.filter.namespace, "namespace", "n", "", namespaceUsage)
	flags.StringVar(&f.filter.pod, "pod", "", "NAMESPACE/POD of either side, or POD with --namespace; the beginning of a name is enough")
	flags.StringVar(&f.filter.from, "from", "", "who opens it: NAMESPACE, NAMESPACE/POD, address or range")
	flags.StringVar(&f.filter.to, "to", "", "where to: NAMESPACE, NAMESPACE/POD, address or range")
	flags.Uint16Var(&f.filter.port, "port", 0, "port of the destination")
	flags.StringSliceVar(&f.filter.carried, "carried", nil, "mtls, same-node, plaintext, refused or failed; several with commas")
	flags.DurationVar(&f.since, "since", 0, "how far back, such as 5m (default: all that is remembered)")
	flags.StringVarP(&f.output, "output", "o", "table", outputUsage)
	flags.Uint64Var(&f.after, "after", 0, "")
	flags.DurationVar(&f.wait, "wait", 0, "")
	for _, hidden := range []string{"after", "wait"} { // between commands of two nodes
		_ = flags.MarkHidden(hidden)
	}
	f.registerCompletions(c)
	return c
}

// registerCompletions is for flags that are there.
func (f *flowsFlags) registerCompletions(c *cobra.Command) {
	_ = c.RegisterFlagCompletionFunc("namespace", f.completeNamespaces)
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions((&output{}).formats(), cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("carried", cobra.FixedCompletions(allCarried(), cobra.ShellCompDirectiveNoFileComp))
	for _, flag := range []string{"pod", "from", "to"} {
		_ = c.RegisterFlagCompletionFunc(flag, func(c *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return f.offerPods(c, typed, "")
		})
	}
}

// outputAnswer is what agents print for each other: the answer as it is.
const outputAnswer = "answer"

type flowsFlags struct {
	everyNode
	filter flowFilter
	follow bool
	began  time.Time // when the command was
	since  time.Duration
	output string
	after  uint64
	wait   time.Duration
}

func (f *flowsFlags) check() error {
	err := errors.Join(f.everyNode.check(), f.filter.check(), oneOf("-o", f.output, "table", "wide", "json", "yaml", outputAnswer))
	switch {
	case err != nil:
		return err
	case f.since < 0:
		return usage("--since: must not be negative")
	case f.output == outputAnswer && !f.local:
		return usage("-o answer: is for --local")
	case f.wait < 0 || f.wait > admin.MaxFlowsWait:
		return usage("--wait: must be up to %s", admin.MaxFlowsWait)
	}
	return nil
}

func (f *flowsFlags) run(c *cobra.Command) error {
	ctx := c.Context()
	if f.output == outputAnswer {
		l, err := f.client().Flows(ctx, f.after, f.wait)
		if err != nil {
			return notRoot(err)
		}
		return json.NewEncoder(c.OutOrStdout()).Encode(l)
	}
	f.began = time.Now()
	cluster, nodes, err := f.agents(ctx, c.ErrOrStderr())
	if err != nil {
		return err
	}
	if f.follow && len(nodes) > maxFollowed {
		return fmt.Errorf("-f: %d nodes are too many to follow at once (%d): name one with --node", len(nodes), maxFollowed)
	}
	all, err := askAll(ctx, &f.everyNode, cluster, nodes, func(c *admin.Client) (*admin.FlowList, error) { return c.Flows(ctx, 0, 0) }, flowsArgs(0, 0)...)
	if err != nil {
		return err
	}
	p := &flowPrinter{w: c.OutOrStdout(), notes: c.ErrOrStderr(), output: f.output, follow: f.follow}
	if err := f.printFirst(p, all); err != nil {
		return err
	}
	failed := silent(all)
	for _, n := range failed {
		p.note("node %s does not answer: %s", n.Node, n.Error)
	}
	if !f.follow {
		if len(failed) > 0 {
			return &exitError{code: exitBadNews}
		}
		return nil
	}
	return f.followAll(ctx, cluster, all, p)
}

func flowsArgs(after uint64, wait time.Duration) []string {
	return []string{"flows", "--local", "-o", outputAnswer, "--after", strconv.FormatUint(after, 10), "--wait", wait.String()}
}

// nodeFlow is a line of the output.
type nodeFlow struct {
	Node string `json:"node"`
	observe.Event
}

// printFirst prints what all nodes remember, in order of time.
func (f *flowsFlags) printFirst(p *flowPrinter, all []told[admin.FlowList]) error {
	var flows []nodeFlow
	var versions []string
	for _, t := range all {
		if t.err != nil {
			continue
		}
		versions = append(versions, t.answer.Version)
		flows = append(flows, f.chosen(t.answer, f.since)...)
		if t.answer.Lost > 0 {
			p.note("node %s: %d were lost on their way to the agent", t.answer.Node, t.answer.Lost)
		}
	}
	noteSkews(p.notes, versions)
	slices.SortStableFunc(flows, func(a, b nodeFlow) int {
		return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Sequence, b.Sequence))
	})
	if !f.follow {
		flows = latestOnly(flows)
	}
	return p.print(flows)
}

// chosen are those that were asked for. since is by the node's clock; 0 is all.
func (f *flowsFlags) chosen(l *admin.FlowList, since time.Duration) []nodeFlow {
	var flows []nodeFlow
	for _, e := range l.Flows {
		if (since == 0 || l.Time.Sub(e.Time) <= since) && f.filter.match(&e) {
			flows = append(flows, nodeFlow{l.Node, e})
		}
	}
	return flows
}

// latestOnly leaves out the beginning of connections whose end is told, too.
func latestOnly(flows []nodeFlow) []nodeFlow {
	type connection struct {
		node   string
		number uint64
		source observe.End
	}
	key := func(n *nodeFlow) connection { return connection{n.Node, n.Number, n.Source} }
	over := map[connection]bool{}
	for i := range flows {
		if !flows[i].Open && flows[i].Number > 0 {
			over[key(&flows[i])] = true
		}
	}
	return slices.DeleteFunc(flows, func(n nodeFlow) bool { return n.Open && over[key(&n)] })
}

// followAll prints what comes, each node's in order, until ctx ends or the output does.
func (f *flowsFlags) followAll(ctx context.Context, c cluster, all []told[admin.FlowList], p *flowPrinter) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var following sync.WaitGroup
	for _, t := range all {
		following.Go(func() {
			if err := f.followOne(ctx, c, t, p); err != nil {
				cancel(err)
			}
		})
	}
	following.Wait()
	return context.Cause(ctx)
}

// followOne asks one agent again and again for what is new, also after it did not answer.
func (f *flowsFlags) followOne(ctx context.Context, c cluster, t told[admin.FlowList], p *flowPrinter) error {
	var after uint64
	met := t.err == nil // it has answered before
	if met {
		after = t.answer.Last
	}
	failing := !met
	for ctx.Err() == nil {
		wait := admin.MaxFlowsWait
		switch {
		case failing:
			wait = 0 // to say at once that it is back
		case c != nil:
			wait = followWait
		}
		l, err := f.askOne(ctx, c, t.node, after, wait)
		if err != nil {
			if !failing && ctx.Err() == nil {
				p.note("node %s does not answer, and is asked again: %v", t.node, err)
			}
			failing = true
			select {
			case <-ctx.Done():
			case <-time.After(followPause):
			}
			continue
		}
		if failing {
			p.note("node %s answers again", l.Node)
		}
		if l.Missed > 0 && met {
			p.note("node %s: %d were too many to follow", l.Node, l.Missed)
		}
		var since time.Duration
		if !met { // all that it remembers is in the answer
			since = f.since + time.Since(f.began)
		}
		failing, met, after = false, true, l.Last
		if err := p.print(f.chosen(l, since)); err != nil {
			return err
		}
	}
	return nil
}

// askOne asks within a time that leaves the agent the wait.
func (f *flowsFlags) askOne(ctx context.Context, c cluster, node string, after uint64, wait time.Duration) (*admin.FlowList, error) {
	if c == nil {
		l, err := f.client().Flows(ctx, after, wait)
		return l, notRoot(err)
	}
	ctx, cancel := context.WithTimeout(ctx, wait+nodeTimeout)
	defer cancel()
	return askNode[admin.FlowList](ctx, c, node, flowsArgs(after, wait))
}

// flowPrinter prints lines of several nodes.
type flowPrinter struct {
	mu     sync.Mutex
	w      io.Writer
	notes  io.Writer
	output string
	follow bool
	headed bool
}

func (p *flowPrinter) note(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintln(p.notes, "note: "+plain(fmt.Sprintf(format, args...)))
}
