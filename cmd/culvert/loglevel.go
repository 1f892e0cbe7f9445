package main

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/admin"
)

func newLogLevelCommand() *cobra.Command {
	return logLevelCommand(&logLevelFlags{everyNode: everyNode{reach{open: openCluster}}})
}

type logLevelFlags struct {
	everyNode
	out    output
	tunnel bool
}

func logLevelCommand(f *logLevelFlags) *cobra.Command {
	c := &cobra.Command{
		Use:   "loglevel [" + strings.Join(admin.LogLevelNames(), "|") + "]",
		Short: "Show from which level on agents and tunnels log, or change it",
		Long: `Show from which level on agents and tunnels log. With a level, that of a node's agent is changed, or with --tunnel that of
its tunnel, until the process starts again; --log-level says what it starts with. That takes root on the node, or permission
to create pods/exec in Culvert's namespace, and --node or --local: one node at a time.

The exit code is 1 if a node does not answer or cannot do it, 2 for wrong usage.`,
		Example: `  culvert loglevel
  culvert loglevel debug --node worker-1
  culvert loglevel debug --node worker-1 --tunnel
  culvert loglevel info --local`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: cobra.FixedCompletions(admin.LogLevelNames(), cobra.ShellCompDirectiveNoFileComp),
		RunE: func(c *cobra.Command, args []string) error {
			change, err := f.change(args)
			if err := errors.Join(err, f.check(), f.out.check()); err != nil {
				return err
			}
			return finished(c, f.run(c, change))
		},
	}
	f.register(c)
	f.out.register(c)
	c.Flags().BoolVar(&f.tunnel, "tunnel", false, "change the tunnel's level, not the agent's")
	return c
}

func (f *logLevelFlags) change(args []string) (change admin.LogChange, err error) {
	switch {
	case len(args) == 0 && f.tunnel:
		return change, usage("--tunnel: which level?")
	case len(args) == 0:
		return change, nil
	case f.node == "" && !f.local:
		return change, usage("say of which node: --node NAME, or --local")
	}
	if _, err := admin.ParseLogLevel(args[0]); err != nil || args[0] == "" {
		return change, usage("%q is no level: want %s", args[0], strings.Join(admin.LogLevelNames(), ", "))
	}
	if f.tunnel {
		change.Tunnel = args[0]
	} else {
		change.Agent = args[0]
	}
	return change, nil
}

// logLevels is the answer. Fields are only ever added to it.
type logLevels struct {
	Nodes  []admin.LogLevels `json:"nodes"`
	Silent []nodeError       `json:"silent,omitempty"`
}

func (f *logLevelFlags) run(c *cobra.Command, change admin.LogChange) error {
	cluster, nodes, err := f.agents(c.Context(), c.ErrOrStderr())
	if err != nil {
		return err
	}
	args := []string{"loglevel", "--local", "-o", "json"}
	if level := change.Agent + change.Tunnel; level != "" {
		args = append(args, level)
	}
	if f.tunnel {
		args = append(args, "--tunnel")
	}
	all, err := askAll(c.Context(), &f.everyNode, cluster, nodes, f.askSocket(c.Context(), change), args...)
	if err != nil {
		return err
	}
	answer := logLevels{Nodes: []admin.LogLevels{}, Silent: silent(all)}
	var versions []string
	for _, t := range all {
		if t.err == nil {
			answer.Nodes = append(answer.Nodes, t.answer.Nodes...)
		}
	}
	for i := range answer.Nodes {
		versions = append(versions, answer.Nodes[i].Version)
	}
	noteSkews(c.ErrOrStderr(), versions)
	if err := f.out.write(c.OutOrStdout(), answer, answer.show); err != nil {
		return err
	}
	if len(answer.Silent) > 0 {
		return &exitError{code: exitBadNews}
	}
	return nil
}

func (f *logLevelFlags) askSocket(ctx context.Context, change admin.LogChange) func(*admin.Client) (*logLevels, error) {
	return func(c *admin.Client) (*logLevels, error) {
		l, err := c.LogLevels(ctx, change)
		if err != nil {
			return nil, err
		}
		return &logLevels{Nodes: []admin.LogLevels{*l}}, nil
	}
}

func (l logLevels) show(s *screen) {
	var rows [][]cell
	for i := range l.Nodes {
		n := &l.Nodes[i]
		rows = append(rows, cells(n.Node, "agent", n.Version, n.Agent))
		for _, t := range n.Tunnels {
			rows = append(rows, cells(n.Node, "tunnel", t.Version, t.Level))
		}
	}
	slices.SortStableFunc(rows, func(a, b []cell) int { return strings.Compare(a[0].text, b[0].text) })
	s.table([]string{"NODE", "PROCESS", "VERSION", "LEVEL"}, rows)
	for _, n := range l.Silent {
		s.list(plain(n.Node)+":", red, []string{n.Error})
	}
}
