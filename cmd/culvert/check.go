package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/datapath"
)

func newCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Tell whether this kernel can run Culvert",
		Long:  "Try each kernel feature that Culvert needs, one by one. Exits with 1 if one is missing.",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			table := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(table, "FEATURE\tSTATE\tNEEDED")
			missing := 0
			for _, f := range datapath.Probe() {
				state := "ok"
				if f.Err != nil {
					state = "missing: " + f.Err.Error()
				}
				if f.Err != nil && !f.Optional {
					missing++
				}
				fmt.Fprintf(table, "%s\t%s\t%s\n", f.Name, state, f.Needed)
			}
			if err := table.Flush(); err != nil {
				return err
			}
			if missing > 0 {
				return fmt.Errorf("check: %d kernel features are missing", missing)
			}
			return nil
		},
	}
}

func newUninstallCommand() *cobra.Command {
	var options datapath.Options
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Return this node's pods to plain networking",
		Long: `Remove every BPF program, link and map that an agent of this node pinned, and nothing else. Stop the agent
first. Policies are no longer enforced afterwards.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return datapath.Uninstall(options) },
	}
	registerPlaces(c, &options.BPFFS, &options.Cgroup)
	return c
}
