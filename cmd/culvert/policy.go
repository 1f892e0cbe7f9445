package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/enroll"
	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/agent/source/file"
	"github.com/culvert-mesh/culvert/agent/source/kube"
	"github.com/culvert-mesh/culvert/policy"
)

func newPolicyCommand() *cobra.Command { return policyCommand(kube.Read) }

// clusterReader is kube.Read.
type clusterReader func(context.Context, kube.Access) (source.Contents, error)

func policyCommand(read clusterReader) *cobra.Command {
	c := &cobra.Command{
		Use:   "policy",
		Short: "Explain and check PeerAuthentication and DestinationRule, of manifests or a cluster",
		Example: `  culvert policy explain shop/cart-7f9c:8080
  culvert policy lint -f manifests/`,
	}
	c.AddCommand(newExplainCommand(read), newLintCommand(read))
	return c
}

// policyFlags are common to the commands that read manifests, or a cluster.
type policyFlags struct {
	files          []string
	access         kube.Access
	readCluster    clusterReader
	root           string
	output         output
	injectionLabel bool
}

func (f *policyFlags) add(c *cobra.Command) {
	c.Flags().StringArrayVarP(&f.files, "filename", "f", nil, "file or folder of manifests, or - for standard input; may be repeated (default: the cluster)")
	c.Flags().StringVar(&f.access.Kubeconfig, "kubeconfig", "", kubeconfigUsage)
	c.Flags().StringVar(&f.access.Context, "context", "", contextUsage)
	c.Flags().StringVar(&f.root, "root-namespace", policy.DefaultRootNamespace, "the mesh's root namespace")
	f.output.register(c)
	c.Flags().BoolVar(&f.injectionLabel, "injection-label", true, "the namespace label istio-injection=enabled enrols, too")
}

func (f *policyFlags) check() error {
	if len(f.files) > 0 && (f.access.Kubeconfig != "" || f.access.Context != "") {
		return usage("-f reads manifests: it excludes --kubeconfig and --context")
	}
	return f.output.check()
}

func (f *policyFlags) enroll() enroll.Options {
	return enroll.Options{InjectionLabel: f.injectionLabel}
}

func counts(kinds map[string]int) string {
	parts := make([]string, 0, len(kinds))
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		parts = append(parts, fmt.Sprintf("%d %s", kinds[kind], plain(kind)))
	}
	return strings.Join(parts, ", ")
}

// noteUnread says what of the manifests could not be used, one a line, and what was passed over.
func noteUnread(w io.Writer, r file.Result) {
	for _, e := range r.Errors {
		fmt.Fprintln(w, onOneLine(e.Error()))
	}
	if len(r.Skipped) > 0 {
		fmt.Fprintln(w, "passed over:", counts(r.Skipped))
	}
}

// onOneLine is printable for what must not look like two.
func onOneLine(text string) string {
	return strings.NewReplacer("\n", "?", "\t", " ").Replace(printable(text))
}

// failed is the error of a run that left something out, or nil.
func failed(r file.Result) error {
	if len(r.Errors) == 0 {
		return nil
	}
	noun := "errors"
	if len(r.Errors) == 1 {
		noun = "error"
	}
	return &exitError{1, fmt.Errorf("%d %s: what could not be read is missing in the result", len(r.Errors), noun)}
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func compareNames(aNamespace, aName, bNamespace, bName string) int {
	return cmp.Or(cmp.Compare(aNamespace, bNamespace), cmp.Compare(aName, bName))
}
