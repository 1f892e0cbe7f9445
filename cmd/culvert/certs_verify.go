package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/admin"
)

func certsVerifyCommand(a *asking) *cobra.Command {
	var out output
	c := &cobra.Command{
		Use:   "verify [NAMESPACE/]POD-A [NAMESPACE/]POD-B",
		Short: "Make a real handshake from one pod to another, and explain what came of it",
		Long: `Make a real handshake from pod A to pod B, as a connection of A would: from A's own address, with A's certificate, to
the port of B's tunnel. Nothing else is sent. Line by line it says what each side presented, whether that holds, and for
what does not, what it means and what to do. Which agent is asked, and how, is as for culvert certs; it is the one of A's
node. The exit code is 0 if both sides accepted each other, and 1 otherwise.`,
		Example: `  culvert certs verify shop/cart-7f9c shop/till-5d8b
  culvert certs verify shop/cart-7f9c shop/till-5d8b -o json --kubeconfig ~/.kube/config`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completePods(2),
		RunE: func(c *cobra.Command, args []string) error {
			from, fromErr := a.namedPod(args[0])
			to, toErr := a.namedPod(args[1])
			if err := errors.Join(fromErr, toErr, a.check(), out.check()); err != nil {
				return err
			}
			return finished(c, verifyPods(c, a, from, to, &out))
		},
	}
	a.register(c)
	a.registerNamespace(c)
	out.register(c)
	return c
}

// verified is the handshake and what it means. Fields are only ever added to it.
type verified struct {
	admin.Handshake
	Accepted bool      `json:"ok"`
	Findings []finding `json:"findings"`
}

func verifyPods(c *cobra.Command, a *asking, from, to string, out *output) error {
	h, err := a.handshake(c.Context(), from, to)
	if err != nil {
		return err
	}
	noteSkew(c.ErrOrStderr(), h.Version)
	v := verified{Handshake: *h, Findings: explainHandshake(h, time.Now())}
	v.Accepted = h.OK()
	if err := out.write(c.OutOrStdout(), v, func(s *screen) { _ = v.write(&s.text) }); err != nil { // the text takes everything
		return err
	}
	if !v.Accepted {
		return &exitError{code: exitBadNews}
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
		fmt.Fprintf(t, "%s\t%s\t%s\n", plain(string(f.State)), plain(f.Subject), plain(f.Text))
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
