// Package preflight looks at a cluster before, or while, agents run in it: is the API server reachable, may the agent
// do what it must, are the policies' kinds served, does its DaemonSet stand, do the clocks agree. It changes nothing.
package preflight

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	// defaultTimeout is for all of it, so that an API server which hangs is told from one that is slow.
	defaultTimeout = 20 * time.Second
	concurrency    = 8
)

// State is how one check came out.
type State string

// The states. Warning is for what works in a lesser way.
const (
	OK      State = "ok"
	Warning State = "warning"
	Failed  State = "failed"
)

// Result is one line of the table.
type Result struct {
	Check  string // "may list pods"
	State  State
	Detail string // what was found, or what is wrong
	Needed string // what for
}

// Options say what to look for. The zero value is what the manifests install.
type Options struct {
	Namespace string // culvert-system when empty
	DaemonSet string // culvert-agent when empty
	// ServiceAccount, in Namespace, is asked about in place of whoever runs the check. That takes the permission to
	// create subjectaccessreviews, which administrators have.
	ServiceAccount string
	Timeout        time.Duration // of all; 20 s when 0
}

// checker is one run.
type checker struct {
	Options
	config *rest.Config
	client kubernetes.Interface
}

// Check makes all checks and returns their results in the order of the table. Without an API server it is the
// first of them that fails, and the only one.
func Check(ctx context.Context, config *rest.Config, o Options) []Result {
	if o.Namespace == "" {
		o.Namespace = "culvert-system"
	}
	if o.DaemonSet == "" {
		o.DaemonSet = DefaultDaemonSet
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	ctx, stop := context.WithTimeout(ctx, o.Timeout)
	defer stop()
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = 100, 100
	config.Timeout = o.Timeout
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return []Result{{"API server", Failed, err.Error(), "everything"}}
	}
	c := &checker{o, config, client}
	results, reachable := c.server(ctx)
	if !reachable {
		return results
	}
	results = append(results, c.permissions(ctx)...)
	results = append(results, c.kinds()...)
	return append(results, c.installation(ctx)...)
}

// AnyFailed reports whether the agent cannot work.
func AnyFailed(results []Result) bool {
	for _, r := range results {
		if r.State == Failed {
			return true
		}
	}
	return false
}

// WriteTable writes the results for people.
func WriteTable(w io.Writer, results []Result) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "CHECK\tSTATE\tFOUND\tNEEDED FOR")
	for _, r := range results {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", r.Check, r.State, r.Detail, r.Needed)
	}
	return table.Flush()
}
