package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/admin"
)

func newCertsVerifyCommand(r *reach) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "verify NAMESPACE/POD-A NAMESPACE/POD-B",
		Short: "Make a real handshake from one pod to another, and explain what came of it",
		Long: `Make a real handshake from pod A to pod B, as a connection of A would: from A's own address, with A's certificate, to
the port of B's tunnel. Nothing else is sent. Line by line it says what each side presented, whether that holds, and for
what does not, what it means and what to do. Which agent is asked, and how, is as for culvert certs; it is the one of A's
node. The exit code is 0 if both sides accepted each other, and 1 otherwise.`,
		Example: `  culvert certs verify shop/cart-7f9c shop/till-5d8b
  culvert certs verify shop/cart-7f9c shop/till-5d8b -o json --kubeconfig ~/.kube/config`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			if output != "table" && output != "json" {
				return fmt.Errorf("-o %q: must be table or json", output)
			}
			return interrupted(c.Context(), verifyPods(c, r, args[0], args[1], output))
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return c
}

// verified is the handshake and what it means. Fields are only ever added to it.
type verified struct {
	admin.Handshake
	Accepted bool      `json:"ok"`
	Findings []finding `json:"findings"`
}

func verifyPods(c *cobra.Command, r *reach, from, to, output string) error {
	for _, pod := range []string{from, to} {
		if err := checkPodName(pod); err != nil {
			return err
		}
	}
	h, err := r.handshake(c.Context(), from, to)
	if err != nil {
		return err
	}
	noteSkew(c.ErrOrStderr(), h.Version)
	v := verified{Handshake: *h, Findings: explainHandshake(h, time.Now())}
	v.Accepted = h.OK()
	if output == "json" {
		err = writeJSON(c.OutOrStdout(), v)
	} else {
		err = v.write(c.OutOrStdout())
	}
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	if !v.Accepted {
		return &exitError{code: 1}
	}
	return nil
}

// write writes one line for each finding, and below it what to do.
func (v *verified) write(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "from  %s  %s  (node %s)\n", plain(v.From), plain(v.FromIdentity), plain(v.Node))
	fmt.Fprintf(&b, "to    %s  %s  (%s)\n\n", plain(v.To), plain(v.ExpectedIdentity), plain(v.Address))
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, f := range v.Findings {
		fmt.Fprintf(t, "%s\t%s\t%s\n", f.State, f.Subject, plain(f.Text))
		for _, advice := range f.Advice {
			fmt.Fprintf(t, "\t\t-> %s\n", plain(advice))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	switch {
	case v.Accepted:
		b.WriteString("\nboth sides accept each other\n")
	default:
		fmt.Fprintf(&b, "\nfailed at: %s\n", plain(string(v.Stage)))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
