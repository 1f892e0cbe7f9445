package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/enroll"
	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/agent/source/file"
	"github.com/culvert-mesh/culvert/policy"
)

func newLintCommand(read clusterReader) *cobra.Command {
	f := policyFlags{readCluster: read}
	var domain string
	var strict bool
	c := &cobra.Command{
		Use:   "lint [-f FILE|FOLDER ...]",
		Short: "Find mistakes in PeerAuthentications and DestinationRules",
		Long: `Find mistakes in PeerAuthentications and DestinationRules: what the API refuses (errors), and what it
accepts but was probably not meant (warnings). With Pods and Services among the manifests more is found.
Without -f the cluster is read, which takes permission to list Namespaces, Pods, Services and both kinds of policy.
The exit code is 1 on errors, and with --strict also on warnings.`,
		Example: `  culvert policy lint --strict
  culvert policy lint -f manifests/ -o json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			return lint(c, &f, domain, strict)
		},
	}
	f.add(c)
	c.Flags().StringVar(&domain, "cluster-domain", policy.DefaultClusterDomain, "the cluster's DNS domain")
	c.Flags().BoolVar(&strict, "strict", false, "fail on warnings, too")
	return c
}

// remark is a finding with its place.
type remark struct {
	policy.Finding
	File     string `json:"file,omitempty"`
	Document int    `json:"document,omitempty"`
	Line     int    `json:"line,omitempty"`
}

func lint(c *cobra.Command, f *policyFlags, domain string, strict bool) error {
	r, err := f.read(c)
	if err != nil {
		return err
	}
	broken := make([]remark, 0, len(r.Errors))
	for _, e := range r.Errors {
		broken = append(broken, remark{
			policy.Finding{Severity: policy.Error, Object: e.Object, Field: e.Field, Message: e.Err.Error()}, e.File, e.Document, e.Line,
		})
	}
	found := located(policy.Lint(lintInput(r, f, domain)), r.Objects)
	// In a table the broken ones are missing: they were said on standard error.
	if err := f.output.write(c.OutOrStdout(), append(broken, found...), func(s *screen) { s.text.WriteString(remarksText(found)) }); err != nil {
		return err
	}
	return verdict(append(broken, found...), strict)
}

func verdict(all []remark, strict bool) error {
	var failures, warnings int
	for _, r := range all {
		if r.Severity == policy.Error {
			failures++
		} else {
			warnings++
		}
	}
	if failures == 0 && (warnings == 0 || !strict) {
		return nil
	}
	return &exitError{1, fmt.Errorf("%d errors, %d warnings", failures, warnings)}
}

// located adds to each finding where its object stands.
func located(findings []policy.Finding, objects []file.Object) []remark {
	places := make(map[string]file.Object, len(objects))
	for _, o := range objects {
		places[o.Kind+" "+o.Namespace+"/"+o.Name] = o
	}
	out := make([]remark, 0, len(findings))
	for _, f := range findings {
		at := places[f.Object]
		out = append(out, remark{f, at.File, at.Document, at.Line})
	}
	return out
}

func remarksText(all []remark) string {
	var b strings.Builder
	for _, r := range all {
		if r.Line > 0 {
			fmt.Fprintf(&b, "%s:%d: ", plain(r.File), r.Line)
		}
		fmt.Fprintln(&b, onOneLine(r.Finding.String()))
	}
	return b.String()
}

func lintInput(r file.Result, f *policyFlags, domain string) policy.LintInput {
	in := policy.LintInput{Root: f.root, ClusterDomain: domain, Policies: r.Policies, Rules: r.Rules}
	snapshot := source.NewSnapshot("", r.Contents)
	for i := range r.Pods {
		p := &r.Pods[i]
		in.Workloads = append(in.Workloads, policy.LintWorkload{
			Workload: workloadOf(p),
			Enrolled: enroll.Decide(snapshot.Namespace(p.Namespace), p, f.enroll()).Enrolled,
			Ports:    p.ContainerPorts,
		})
	}
	for i := range r.Services {
		in.Services = append(in.Services, lintService(&r.Services[i], r.Pods))
	}
	return in
}

func lintService(s *source.Service, pods []source.Pod) policy.LintService {
	out := policy.LintService{Namespace: s.Namespace, Name: s.Name, Selector: s.Selector, Ports: map[uint16]uint16{}}
	for _, port := range s.Ports {
		if number := containerPort(s, port.Target, pods); number != 0 {
			out.Ports[port.Port] = number
		}
	}
	return out
}

// containerPort is where a Service's port leads. A name is looked up in the first pod that has it; 0 if none has.
func containerPort(s *source.Service, target string, pods []source.Pod) uint16 {
	if n, err := strconv.ParseUint(target, 10, 16); err == nil {
		return uint16(n)
	}
	for i := range pods {
		p := &pods[i]
		if number := p.Ports[target]; number != 0 && p.Namespace == s.Namespace && selects(s.Selector, p.Labels) {
			return number
		}
	}
	return 0
}

func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return len(selector) > 0
}
