package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

const (
	// completionTimeout is how long a shell waits at most.
	completionTimeout = 2 * time.Second
	maxCompletions    = 200
)

// pluginName is how kubectl finds a plugin.
const pluginName = "kubectl-culvert"

// displayName is how the command is called: `kubectl culvert` where the binary is kubectl's plugin. It is for
// cobra.CommandDisplayNameAnnotation of the root command.
func displayName(arg0 string) string {
	if strings.TrimSuffix(filepath.Base(arg0), ".exe") == pluginName {
		return "kubectl culvert"
	}
	return "culvert"
}

// completeNodes offers the nodes that have an agent.
func (r *reach) completeNodes(c *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return r.offer(c, typed, func(ctx context.Context, f cluster) ([]string, error) {
		agents, err := agentNodes(ctx, f)
		var names []string
		for _, n := range agents {
			names = append(names, n.name)
		}
		return names, err
	})
}

// completeNamespaces offers the namespaces that have pods.
func (r *reach) completeNamespaces(c *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return r.offer(c, typed, func(ctx context.Context, f cluster) ([]string, error) {
		refs, err := f.PodsIn(ctx, "")
		for i := range refs {
			refs[i], _, _ = strings.Cut(refs[i], "/")
		}
		slices.Sort(refs)
		return slices.Compact(refs), err
	})
}

// completePods offers pods for the first most arguments.
func (a *asking) completePods(most int) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.offerPods(c, typed, a.namespace)
	}
}

// offerPods offers the pods of a namespace by their names, without one those of all as "namespace/name".
func (r *reach) offerPods(c *cobra.Command, typed, of string) ([]cobra.Completion, cobra.ShellCompDirective) {
	namespace, _, full := strings.Cut(typed, "/")
	if !full {
		namespace = of
	}
	return r.offer(c, typed, func(ctx context.Context, f cluster) ([]string, error) {
		refs, err := f.PodsIn(ctx, namespace)
		if of != "" && !full {
			for i := range refs {
				_, refs[i], _ = strings.Cut(refs[i], "/")
			}
		}
		return refs, err
	})
}

// offer asks the cluster. Without one, or when it is slow, nothing is offered: no shell shows an error here.
func (r *reach) offer(c *cobra.Command, typed string, list func(context.Context, cluster) ([]string, error)) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx := c.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	answer := make(chan []string, 1)
	go func() { // credentials may come from a program that no context ends; this process ends at once, and it with that
		var names []string
		f, err := r.open(r.cluster)
		if err == nil {
			names, err = list(ctx, f)
		}
		if err != nil {
			names = nil
		}
		answer <- names
	}()
	var names []string
	select {
	case names = <-answer:
	case <-ctx.Done():
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, typed) })
	slices.Sort(names)
	return names[:min(len(names), maxCompletions)], cobra.ShellCompDirectiveNoFileComp
}

// kubectlScript is what kubectl, of version 1.26 or later, runs when words after "kubectl culvert" are to be completed.
const kubectlScript = `#!/bin/sh
exec kubectl-culvert __complete "$@"
`

// addCompletion adds cobra's own command, and what kubectl wants.
func addCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() != "completion" {
			continue
		}
		c.Example = "  source <(culvert completion bash)\n  culvert completion kubectl"
		for _, shell := range c.Commands() {
			shell.Example = "  culvert completion " + shell.Name()
		}
		c.AddCommand(newKubectlCompletionCommand())
	}
}

func newKubectlCompletionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "kubectl",
		Short: "Generate the program that completes words after \"kubectl culvert\"",
		Long: `Generate the program that kubectl (1.26 or later) runs to complete words after "kubectl culvert". It must be in the
path under the name kubectl_complete-culvert, and the culvert binary, or a link to it, under the name kubectl-culvert.`,
		Example: `  ln -s culvert /usr/local/bin/kubectl-culvert
  culvert completion kubectl > /usr/local/bin/kubectl_complete-culvert
  chmod +x /usr/local/bin/kubectl_complete-culvert`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			if _, err := io.WriteString(c.OutOrStdout(), kubectlScript); err != nil {
				return fmt.Errorf("write output: %w", err)
			}
			return nil
		},
	}
}
