package main

import (
	"context"
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
func (a *asking) completeNodes(c *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.offer(c, typed, func(ctx context.Context, f fleet) ([]string, error) {
		agents, err := f.AgentNodes(ctx)
		var names []string
		for node := range agents {
			names = append(names, node)
		}
		return names, err
	})
}

// completePods offers pods for the first most arguments.
func (a *asking) completePods(most int) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		namespace, _, full := strings.Cut(typed, "/")
		if !full {
			namespace = a.namespace
		}
		return a.offer(c, typed, func(ctx context.Context, f fleet) ([]string, error) {
			refs, err := f.PodsIn(ctx, namespace)
			if a.namespace != "" && !full {
				for i := range refs {
					_, refs[i], _ = strings.Cut(refs[i], "/")
				}
			}
			return refs, err
		})
	}
}

// offer asks the cluster. Without one, or when it is slow, nothing is offered: no shell shows an error here.
func (a *asking) offer(c *cobra.Command, typed string, list func(context.Context, fleet) ([]string, error)) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx := c.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	f, err := a.openFleet()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names, err := list(ctx, f)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, typed) })
	slices.Sort(names)
	return names[:min(len(names), maxCompletions)], cobra.ShellCompDirectiveNoFileComp
}
