package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/admin"
)

func newStatusCommand() *cobra.Command { return statusCommand(&everyNode{reach{open: openCluster}}) }

func statusCommand(e *everyNode) *cobra.Command {
	var (
		out     output
		foreign bool
	)
	c := &cobra.Command{
		Use:   "status",
		Short: "Show how every node stands",
		Long: `Show how every node stands: versions, health, pods, certificates, kernel, how full the kernel's maps are, and what is
wrong. All agents are asked through the API server, as kubectl exec does it; that takes permission to get and list pods,
and to create pods/exec in Culvert's namespace, and to list nodes, to know of those without an agent. With --local, and on
a node where nobody set up a kubeconfig, this node's agent alone is asked, through its socket.

--foreign also looks for BPF programs of others on the hooks that Culvert uses: on the node's cgroup, and in each enrolled
pod's namespace. The exit code is 1 if anything is wrong on any node, or an agent does not answer.`,
		Example: `  culvert status
  culvert status --node worker-2 -o wide
  culvert status --local --foreign
  culvert status -o json | jq '.nodes[] | select(.status.problems != [])'`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := errors.Join(e.check(), out.check()); err != nil {
				return err
			}
			return finished(c, e.status(c, &out, foreign))
		},
	}
	e.register(c)
	out.register(c)
	c.Flags().BoolVar(&foreign, "foreign", false, "look for programs of others on our hooks, too")
	return c
}

// nodesStatus is the answer. Fields are only ever added to it.
type nodesStatus struct {
	Nodes []nodeStatus `json:"nodes"`
}

type nodeStatus struct {
	Node   string        `json:"node"`
	Agent  bool          `json:"agent"`           // there is to be one
	Error  string        `json:"error,omitempty"` // why there is no status
	Status *admin.Status `json:"status,omitempty"`
}

// healthy is false also for an agent that does not answer. A node without an agent may be meant to have none.
func (n *nodeStatus) healthy() bool {
	return n.Error == "" && (n.Status == nil || len(n.Status.Problems) == 0)
}

func (e *everyNode) status(c *cobra.Command, out *output, foreign bool) error {
	all, err := e.statuses(c, foreign)
	if err != nil {
		return err
	}
	if err := out.write(c.OutOrStdout(), all, func(s *screen) { all.show(s, time.Now()) }); err != nil {
		return err
	}
	if slices.ContainsFunc(all.Nodes, func(n nodeStatus) bool { return !n.healthy() }) {
		return &exitError{code: exitBadNews}
	}
	return nil
}

func (e *everyNode) statuses(c *cobra.Command, foreign bool) (*nodesStatus, error) {
	ctx := c.Context()
	fleet, agents, err := e.agents(ctx, c.ErrOrStderr())
	if err != nil {
		return nil, err
	}
	args := []string{"status", "--local", "-o", "json"}
	if foreign {
		args = append(args, "--foreign")
	}
	answers, err := askAll(ctx, e, fleet, agents, func(client *admin.Client) (*nodesStatus, error) {
		s, err := client.Status(ctx, foreign)
		if err != nil {
			return nil, err
		}
		return &nodesStatus{[]nodeStatus{{Node: s.Node, Agent: true, Status: s}}}, nil
	}, args...)
	if err != nil {
		return nil, err
	}
	all := &nodesStatus{Nodes: make([]nodeStatus, 0, len(answers))}
	for _, t := range answers {
		all.Nodes = append(all.Nodes, statusOf(t))
	}
	if fleet != nil && e.node == "" {
		all.addBare(c, fleet)
	}
	return all, nil
}

func statusOf(t told[nodesStatus]) nodeStatus {
	switch {
	case t.err != nil:
		return nodeStatus{Node: t.node, Agent: true, Error: t.err.Error()}
	case len(t.answer.Nodes) != 1 || t.answer.Nodes[0].Status == nil:
		return nodeStatus{Node: t.node, Agent: true, Error: "its agent's answer is none"}
	}
	n := t.answer.Nodes[0]
	n.Node = cmp.Or(t.node, n.Node)
	return n
}

// addBare adds the nodes without an agent. Who may not list nodes sees those with one.
func (all *nodesStatus) addBare(c *cobra.Command, fleet cluster) {
	names, err := fleet.AllNodes(c.Context())
	if err != nil {
		fmt.Fprintf(c.ErrOrStderr(), "note: nodes without an agent are not shown: %s\n", plain(err.Error()))
	}
	for _, name := range names {
		if !slices.ContainsFunc(all.Nodes, func(n nodeStatus) bool { return n.Node == name }) {
			all.Nodes = append(all.Nodes, nodeStatus{Node: name})
		}
	}
	slices.SortFunc(all.Nodes, func(a, b nodeStatus) int { return cmp.Compare(a.Node, b.Node) })
}

// show writes the table, and below it what is wrong.
func (all *nodesStatus) show(s *screen, now time.Time) {
	header := []string{"NODE", "HEALTH", "AGENT", "TUNNEL", "PODS", "NOT ENROLLED", "CERTIFICATES", "NEXT EXPIRY", "KERNEL"}
	if s.wide {
		header = append(header, "KNOWN PODS", "FULLEST MAP", "REFUSED", "OTHERS' PROGRAMS")
	}
	rows := make([][]cell, 0, len(all.Nodes))
	for i := range all.Nodes {
		row := all.Nodes[i].row(s.wide, now)
		for len(row) < len(header) {
			row = append(row, cell{})
		}
		rows = append(rows, row)
	}
	s.table(header, rows)
	for i := range all.Nodes {
		all.Nodes[i].details(s)
	}
	all.versions(s)
}

func (n *nodeStatus) row(wide bool, now time.Time) []cell {
	switch {
	case n.Error != "":
		return []cell{{text: n.Node}, {"no answer", red}}
	case n.Status == nil:
		return []cell{{text: n.Node}, {"no agent", yellow}}
	}
	st := n.Status
	health := cell{"ok", green}
	if p := len(st.Problems); p > 0 {
		health = cell{plural(p, "problem"), red}
	}
	certificates := fmt.Sprint(st.Certificates.Total)
	if bad := st.Certificates.Failing + st.Certificates.Expired; bad > 0 {
		certificates += fmt.Sprintf(" (%d failing, %d expired)", st.Certificates.Failing, st.Certificates.Expired)
	}
	expiry := ""
	if e := st.Certificates.NextExpiry; e != nil {
		if expiry = short(e.Sub(st.Time)); e.Before(st.Time) {
			expiry = "expired"
		}
	}
	row := []cell{
		{text: n.Node}, health, {text: age(st.Version, st.Started, now)}, {text: tunnels(st.Tunnels, now)},
		{text: fmt.Sprint(st.Workloads.Enrolled)}, {text: fmt.Sprint(st.Workloads.NotEnrolledCount() + st.Workloads.FailingCount)},
		{text: certificates}, {text: expiry}, {text: kernelCell(&st.Kernel)},
	}
	if wide {
		others := "not asked"
		if st.Foreign != nil {
			others = fmt.Sprint(len(st.Foreign))
		}
		row = append(row, cell{text: fmt.Sprint(st.Source.Pods)}, cell{text: fullest(st.Maps)}, cell{text: fmt.Sprint(refused(st.Counters))}, cell{text: others})
	}
	return row
}

// details are what a row has no room for: what is wrong, reasons, missing features, others' programs.
func (n *nodeStatus) details(s *screen) {
	st := n.Status
	if st == nil {
		if n.Error != "" {
			s.list(plain(n.Node)+":", red, []string{n.Error})
		}
		return
	}
	s.list(plain(n.Node)+":", red, st.Problems)
	var also []string
	for _, t := range st.Tunnels {
		if t.Skew != "" { // no problem by itself: it is so for a while in every update
			also = append(also, t.Skew)
		}
	}
	if s.wide {
		for _, r := range st.Workloads.NotEnrolled {
			also = append(also, fmt.Sprintf("%s not enrolled: %s", plural(r.Count, "pod"), r.Reason))
		}
		for _, f := range st.Kernel.Missing {
			also = append(also, fmt.Sprintf("the kernel lacks %s (%s)", f.Name, f.Needed))
		}
	}
	for _, f := range st.Foreign {
		also = append(also, fmt.Sprintf("program of somebody else: %s, number %d, on %s of %s", cmp.Or(f.Name, "(without a name)"),
			f.ID, f.Hook, cmp.Or(f.Workload, "the node's cgroup")))
	}
	if len(also) > 0 && len(st.Problems) == 0 {
		s.line("\n%s:", plain(n.Node))
	}
	for _, text := range also {
		s.line("  - %s", plain(text))
	}
	if st.Foreign != nil && len(st.Foreign) == 0 {
		s.line("\n%s: no program of anybody else is on our hooks", plain(n.Node))
	}
}

// versions says when the agents are not all of one version, and of this command's.
func (all *nodesStatus) versions(s *screen) {
	var seen []string
	for i := range all.Nodes {
		if st := all.Nodes[i].Status; st != nil && !slices.Contains(seen, st.Version) {
			seen = append(seen, st.Version)
		}
	}
	slices.Sort(seen)
	switch {
	case len(seen) > 1:
		s.line("\nnote: the agents are of several versions: %s", plain(someOf(seen, maxCandidates)))
	case len(seen) == 1 && seen[0] != version:
		s.line("\nnote: the agents are Culvert %s, this is %s", plain(seen[0]), version)
	}
}

func age(version string, since, now time.Time) string {
	if since.IsZero() {
		return version
	}
	return fmt.Sprintf("%s (up %s)", version, short(now.Sub(since)))
}

func tunnels(all []admin.TunnelStatus, now time.Time) string {
	if len(all) == 0 {
		return "none"
	}
	t := all[len(all)-1] // the newest
	text := age(cmp.Or(t.Version, "connected"), t.ConnectedSince, now)
	if more := len(all) - 1; more > 0 {
		text += fmt.Sprintf(" +%d", more)
	}
	return text
}

func kernelCell(k *admin.KernelStatus) string {
	if n := len(k.Missing); n > 0 {
		return fmt.Sprintf("%s (%s missing)", k.Release, plural(n, "feature"))
	}
	return k.Release
}

func fullest(all []admin.MapStatus) string {
	best, text := -1, ""
	for _, m := range all {
		if m.Recycles || m.MaxEntries == 0 {
			continue
		}
		if percent := m.Entries * 100 / m.MaxEntries; percent > best {
			best, text = percent, fmt.Sprintf("%s %d%%", m.Name, percent)
		}
	}
	return text
}

// refused is how many connections were refused for what policies say.
func refused(counters map[string]uint64) uint64 {
	return counters["strict_refused"] // those of ports without a mode are among them
}
