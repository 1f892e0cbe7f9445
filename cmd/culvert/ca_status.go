package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/identity/ca/kube"
)

func newCAStatusCommand() *cobra.Command {
	var (
		flags caCluster
		out   output
	)
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the CA's roots and intermediate, and what is replaced next",
		Long: `Show the CA's roots and intermediate, in which phase the rotation of the root is, and what happens next. It reads
the Secrets culvert-ca and culvert-ca-root, and shows no key.`,
		Example: `  culvert ca status
  culvert ca status --kubeconfig ~/.kube/config -o json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := out.check(); err != nil {
				return err
			}
			client, err := flags.client()
			if err != nil {
				return fmt.Errorf("ca status: %w", err)
			}
			s, err := kube.ReadStatus(c.Context(), client, flags.namespace)
			if err != nil {
				return fmt.Errorf("ca status: %w", err)
			}
			return out.write(c.OutOrStdout(), s, func(to *screen) { _ = writeCAStatus(&to.text, s, time.Now()) }) // the text takes everything
		},
	}
	flags.register(c)
	out.register(c)
	return c
}

// caKind says in words what kube.Status.Kind is.
func caKind(s *kube.Status) string {
	switch s.Kind {
	case "culvert":
		return "made and rotated by Culvert"
	case "operator":
		return "the operator's, who rotates it"
	case "orphan":
		return "made by Culvert, but the Secret of its root is gone: restore culvert-ca-root"
	case "earlier":
		return "of an earlier Culvert; the leader takes its root over"
	}
	return "not made yet"
}

func writeCAStatus(out io.Writer, s *kube.Status, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintf(w, "CA\t%s\n", caKind(s))
	if s.Leader != "" {
		fmt.Fprintf(w, "leader\t%s\n", plain(s.Leader))
	}
	if s.Phase != "" {
		fmt.Fprintf(w, "phase\t%s\n", plain(string(s.Phase)))
	}
	if s.Wait != "" {
		fmt.Fprintf(w, "waited\t%s of %s\n", plain(s.Waited), plain(s.Wait))
	}
	if s.Next != nil {
		fmt.Fprintf(w, "next\t%s %s: %s\n", plain(string(s.Next.Action)), when(s.Next.At, now), plain(s.Next.Why))
	}
	if s.Problem != "" {
		fmt.Fprintf(w, "problem\t%s\n", plain(s.Problem))
	}
	fmt.Fprintln(w, "\nCERTIFICATE\tROLE\tSERIAL\tSHA-256\tEXPIRES\tSUBJECT")
	for _, r := range s.Roots {
		writeCACertificate(w, "root", r, now)
	}
	if s.Intermediate != nil {
		writeCACertificate(w, "intermediate", *s.Intermediate, now)
	}
	return w.Flush()
}

func writeCACertificate(w io.Writer, what string, c kube.Certificate, now time.Time) {
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", what, plain(c.Role), plain(c.Serial), plain(c.SHA256[:min(len(c.SHA256), 16)]), when(c.NotAfter, now), plain(c.Subject))
}

// when is a time as people want it: the date, or how long from now if that is soon.
func when(t, now time.Time) string {
	switch d := t.Sub(now); {
	case d <= 0 && d > -time.Minute:
		return "now"
	case d < 0:
		return t.UTC().Format(time.RFC3339)
	case d < 48*time.Hour:
		return "in " + d.Round(time.Second).String()
	}
	return t.UTC().Format(time.DateOnly)
}
