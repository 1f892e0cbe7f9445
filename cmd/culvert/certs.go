package main

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/admin"
)

func newCertsCommand() *cobra.Command { return certsCommand(newAsking) }

// certsCommand makes an asking for each of its commands: they have flags of their own.
func certsCommand(asks func() *asking) *cobra.Command {
	f := &certsFlags{asking: asks(), output: output{also: []string{"pem"}}}
	c := &cobra.Command{
		Use:   "certs [[NAMESPACE/]POD]",
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
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: f.completePods(1),
		RunE: func(c *cobra.Command, args []string) error {
			pod := ""
			err := f.check()
			if len(args) > 0 && err == nil {
				pod, err = f.namedPod(args[0])
			}
			if err != nil {
				return err
			}
			return finished(c, f.run(c, pod))
		},
	}
	f.register(c)
	f.registerNamespace(c)
	f.output.register(c)
	c.Flags().BoolVar(&f.roots, "roots", false, "with -o pem: the roots, too")
	c.AddCommand(certsVerifyCommand(asks()))
	return c
}

type certsFlags struct {
	*asking
	output output
	roots  bool
}

func (f *certsFlags) check() error {
	if f.roots && f.output.format != "pem" {
		return usage("--roots: is for -o pem; the others show roots anyway")
	}
	return errors.Join(f.asking.check(), f.output.check())
}

func (f *certsFlags) run(c *cobra.Command, pod string) error {
	all, err := f.certificates(c.Context(), pod)
	if err != nil {
		return err
	}
	noteSkew(c.ErrOrStderr(), all.Version)
	if pod != "" {
		all.SVIDs = slices.DeleteFunc(all.SVIDs, func(s admin.SVID) bool { return !slices.Contains(s.Workloads, pod) })
	}
	if f.output.format == "pem" {
		return writePEM(c.OutOrStdout(), all, f.roots)
	}
	return f.output.write(c.OutOrStdout(), all, func(s *screen) { _ = writeCertificates(&s.text, all) }) // the text takes everything
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
