package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/observe"
	"github.com/culvert-mesh/culvert/agent/source/file"
)

func newReadinessCommand() *cobra.Command {
	return readinessCommand(&readinessFlags{everyNode: everyNode{reach{open: openCluster}}})
}

func readinessCommand(f *readinessFlags) *cobra.Command {
	c := &cobra.Command{
		Use:   "readiness NAMESPACE|--all",
		Short: "Say whether STRICT is safe to switch on",
		Long: `Say for each workload and port whether STRICT is safe: who came in plaintext within the window, and why. Connections that
the kubelet's probes make are not counted, since STRICT lets them through. With --policy, what was seen is replayed against
policies that are not in force yet, together with those that are, and what would be refused is listed.

READY: watched for the whole window on every node that had pods of the workload, and nobody came in plaintext, nor is a
plaintext connection still open from before. NOT READY: somebody did. UNKNOWN: not watched for long enough, or not by all
who answered: a node is silent or gone, or a pod ran for a while before it was enrolled. Agents remember a week, across
their restarts.

All nodes are asked through the API server; on a node that has none, or with --local, its agent alone. The exit code is 0
if all is READY, 1 if not, 2 for wrong usage.`,
		Example: `  culvert readiness shop
  culvert readiness --all --window 72h -o wide
  culvert readiness shop --policy strict.yaml -o json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			f.namespace = strings.Join(args, "")
			if err := f.check(); err != nil {
				return &exitError{2, err}
			}
			return interruptedAs(c.Context(), "readiness", f.run(c))
		},
	}
	f.register(c)
	flags := c.Flags()
	flags.BoolVar(&f.all, "all", false, "all namespaces")
	flags.StringArrayVar(&f.policies, "policy", nil, "file of PeerAuthentications that are not in force yet, or - for standard input; may be repeated")
	flags.DurationVar(&f.window, "window", 24*time.Hour, "how far back to look; the agents remember a week")
	flags.StringVarP(&f.output, "output", "o", "table", "table, wide, json or yaml")
	return c
}

type readinessFlags struct {
	everyNode
	namespace string
	all       bool
	policies  []string
	window    time.Duration
	output    string
}

func (f *readinessFlags) check() error {
	if err := errors.Join(f.everyNode.check(), oneOf("-o", f.output, "table", "wide", "json", "yaml", outputAnswer)); err != nil {
		return err
	}
	switch {
	case f.all == (f.namespace != ""):
		return errors.New("say which namespace, or --all")
	case strings.Contains(f.namespace, "/"):
		return fmt.Errorf("%q: is not a namespace; readiness is about all workloads of one", f.namespace)
	case f.window <= 0 || f.window > observe.DefaultWindow:
		return fmt.Errorf("--window: must be more than nothing and up to %s, which is what agents remember", observe.DefaultWindow)
	case f.output == outputAnswer && !f.local:
		return errors.New("-o answer: is for --local")
	}
	return nil
}

func (f *readinessFlags) run(c *cobra.Command) error {
	ctx := c.Context()
	ask := func(client *admin.Client) (*admin.Readiness, error) {
		return client.Readiness(ctx, f.namespace, f.window)
	}
	if f.output == outputAnswer {
		r, err := ask(f.client())
		if err != nil {
			return notRoot(err)
		}
		return json.NewEncoder(c.OutOrStdout()).Encode(r)
	}
	proposal, err := f.read(c)
	if err != nil {
		return err
	}
	cluster, nodes, err := f.agents(ctx, c.ErrOrStderr())
	if err != nil {
		return err
	}
	asked := time.Now()
	all, err := askAll(ctx, &f.everyNode, cluster, nodes, ask, f.args()...)
	if err != nil {
		return err
	}
	report, err := f.judge(c, all, asked, proposal)
	if err != nil {
		return err
	}
	if err := f.print(c, report); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	if report.Verdict != verdictReady {
		return &exitError{code: 1}
	}
	return nil
}

func (f *readinessFlags) args() []string {
	args := []string{"readiness", "--local", "-o", outputAnswer, "--window", f.window.String()}
	if f.all {
		return append(args, "--all")
	}
	return append(args, "--", f.namespace)
}

// read reads --policy. What cannot be read is an error: the answer would be about something else.
func (f *readinessFlags) read(c *cobra.Command) (*file.Result, error) {
	if len(f.policies) == 0 {
		return nil, nil
	}
	r := file.Read(f.policies, c.InOrStdin())
	noteUnread(c.ErrOrStderr(), r)
	switch {
	case len(r.Errors) > 0:
		return nil, fmt.Errorf("--policy: %d of its documents cannot be used", len(r.Errors))
	case len(r.Policies) == 0:
		return nil, errors.New("--policy: there is no PeerAuthentication in it")
	}
	return &r, nil
}

func (f *readinessFlags) judge(c *cobra.Command, all []told[admin.Readiness], asked time.Time, proposal *file.Result) (*readinessReport, error) {
	var answers []*admin.Readiness
	var versions, known []string
	exists := f.all
	for _, t := range all {
		if t.err != nil {
			continue
		}
		answers = append(answers, t.answer)
		versions = append(versions, t.answer.Version)
		known = append(known, t.answer.KnownNames...)
		for _, name := range t.answer.KnownNames {
			exists = exists || name == f.namespace
		}
	}
	noteSkews(c.ErrOrStderr(), versions)
	failed := silent(all)
	if !exists && len(failed) == 0 {
		return nil, unknownNamespace(f.namespace, known)
	}
	j := newJudge(answers, failed, f.window, asked)
	if proposal != nil {
		j.propose(proposal.Policies, f.namespace)
	}
	return j.report()
}

func unknownNamespace(name string, known []string) error {
	if len(known) == 0 {
		return fmt.Errorf("namespace %s does not exist", name)
	}
	return fmt.Errorf("namespace %s does not exist; there are pods in %s", name, someOf(compacted(known), maxCandidates))
}

func (f *readinessFlags) print(c *cobra.Command, r *readinessReport) error {
	switch f.output {
	case "json":
		return writeJSON(c.OutOrStdout(), r)
	case "yaml":
		text, err := yaml.Marshal(r)
		if err == nil {
			_, err = c.OutOrStdout().Write(text)
		}
		return err
	}
	return writeReadiness(c.OutOrStdout(), r, f.output == "wide")
}
