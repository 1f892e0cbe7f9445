package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/enroll"
	"github.com/culvert-mesh/culvert/agent/source/file"
	"github.com/culvert-mesh/culvert/policy"
)

func newPolicyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "policy",
		Short: "Explain and check PeerAuthentication and DestinationRule from manifests",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newExplainCommand(), newLintCommand())
	return c
}

// policyFlags are common to the commands that read manifests.
type policyFlags struct {
	files          []string
	root           string
	output         string
	injectionLabel bool
}

func (f *policyFlags) add(c *cobra.Command) {
	c.Flags().StringArrayVarP(&f.files, "filename", "f", nil, "file or folder of manifests, or - for standard input; may be repeated")
	c.Flags().StringVar(&f.root, "root-namespace", policy.DefaultRootNamespace, "the mesh's root namespace")
	c.Flags().StringVarP(&f.output, "output", "o", "table", "table or json")
	c.Flags().BoolVar(&f.injectionLabel, "injection-label", true, "the namespace label istio-injection=enabled enrols, too")
}

func (f *policyFlags) check() error {
	if len(f.files) == 0 {
		return errors.New("say what to read with -f FILE, -f FOLDER or -f - for standard input")
	}
	if f.output != "table" && f.output != "json" {
		return fmt.Errorf("-o %q: must be table or json", f.output)
	}
	return nil
}

func (f *policyFlags) enroll() enroll.Options {
	return enroll.Options{InjectionLabel: f.injectionLabel}
}

// read reads the manifests and says on standard error what was wrong and what was passed over.
func (f *policyFlags) read(c *cobra.Command) file.Result {
	r := file.Read(f.files, c.InOrStdin())
	for _, e := range r.Errors {
		fmt.Fprintln(c.ErrOrStderr(), e)
	}
	if len(r.Skipped) > 0 {
		fmt.Fprintln(c.ErrOrStderr(), "passed over:", counts(r.Skipped))
	}
	return r
}

func counts(kinds map[string]int) string {
	parts := make([]string, 0, len(kinds))
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		parts = append(parts, fmt.Sprintf("%d %s", kinds[kind], kind))
	}
	return strings.Join(parts, ", ")
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
