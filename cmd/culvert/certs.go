package main

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/admin"
)

func newCertsCommand() *cobra.Command {
	return certsCommand(&certsFlags{reach: reach{open: openCluster}})
}

func certsCommand(f *certsFlags) *cobra.Command {
	c := &cobra.Command{
		Use:   "certs [NAMESPACE/POD]",
		Short: "Show the certificates of this node's pods, or of any pod",
		Long: `Show the certificates that the pods of a node have from Culvert: identity, issuer, how long they live, when they are
renewed, where they come from, and the roots that peers are verified with. Keys are never shown.

On a node with an agent it is asked through its socket, which takes root. With --node, for a pod of another node, and
elsewhere than on a node, the agent is reached through the API server, as kubectl exec does it; that takes permission to
get and list pods, and to create pods/exec in Culvert's namespace.`,
		Example: `  culvert certs
  culvert certs shop/cart-7f9c --kubeconfig ~/.kube/config
  culvert certs shop/cart-7f9c -o pem | openssl x509 -noout -text
  culvert certs --node worker-2 -o json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return interrupted(c.Context(), f.run(c, strings.Join(args, "")))
		},
	}
	f.register(c)
	c.Flags().StringVarP(&f.output, "output", "o", "table", "table, json or pem")
	c.Flags().StringVar(&f.node, "node", "", "ask the agent of this node, through the API server")
	c.Flags().BoolVar(&f.roots, "roots", false, "with -o pem: the roots, too")
	c.AddCommand(newCertsVerifyCommand(&f.reach))
	return c
}

type certsFlags struct {
	reach
	output string
	roots  bool
}

func (f *certsFlags) check(pod string) error {
	switch {
	case !slices.Contains([]string{"table", "json", "pem"}, f.output):
		return fmt.Errorf("-o %q: must be table, json or pem", f.output)
	case f.roots && f.output != "pem":
		return errors.New("--roots: is for -o pem; the others show roots anyway")
	case f.local && f.node != "":
		return errors.New("--local and --node exclude each other")
	case pod != "":
		return checkPodName(pod)
	}
	return nil
}

func checkPodName(pod string) error {
	namespace, name, _ := strings.Cut(pod, "/")
	if namespace == "" || name == "" || strings.Contains(name, "/") {
		return fmt.Errorf("%q: say which pod as NAMESPACE/POD", pod)
	}
	return nil
}

func (f *certsFlags) run(c *cobra.Command, pod string) error {
	if err := f.check(pod); err != nil {
		return err
	}
	all, err := f.certificates(c.Context(), pod)
	if err != nil {
		return err
	}
	noteSkew(c.ErrOrStderr(), all.Version)
	if pod != "" {
		all.SVIDs = slices.DeleteFunc(all.SVIDs, func(s admin.SVID) bool { return !slices.Contains(s.Workloads, pod) })
	}
	switch f.output {
	case "json":
		err = writeJSON(c.OutOrStdout(), all)
	case "pem":
		return writePEM(c.OutOrStdout(), all, f.roots)
	default:
		err = writeCertificates(c.OutOrStdout(), all)
	}
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// noteSkew says when agent and command are of different versions, which may explain what is missing.
func noteSkew(w io.Writer, agent string) {
	if agent != version {
		fmt.Fprintf(w, "note: the agent is Culvert %s, this is %s\n", plain(agent), version)
	}
}

// interrupted turns the error of whatever Ctrl-C ended into the exit code that shells expect.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return &exitError{code: 130, err: errors.New("certs: interrupted")}
	}
	return err
}

// writePEM writes chains, each below a line with its identity, which readers of PEM pass over.
func writePEM(w io.Writer, all *admin.Certificates, roots bool) error {
	var b strings.Builder
	add := func(title string, certs []admin.Certificate) {
		fmt.Fprintf(&b, "# %s\n", plain(title))
		for i := range certs {
			b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certs[i].DER}))
		}
	}
	for i := range all.SVIDs {
		if s := &all.SVIDs[i]; len(s.Chain) > 0 {
			add(s.Identity, s.Chain)
		}
	}
	if b.Len() == 0 && !roots {
		return errors.New("certs: there is no certificate yet; `culvert certs` says why")
	}
	if roots {
		for _, bundle := range all.Bundles {
			add("roots of "+bundle.TrustDomain, bundle.Roots)
		}
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}
