package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/datapath"
	"github.com/culvert-mesh/culvert/agent/observe"
)

func newCheckCommand() *cobra.Command {
	var kube kubeCheck
	c := &cobra.Command{
		Use:   "check",
		Short: "Tell whether this kernel, or this cluster, can run Culvert",
		Long: `Try each kernel feature that Culvert needs, one by one. With --kube, ask the API server for each permission that
the agent needs instead. The exit code is 1 if one is missing.`,
		Example: `  culvert check
  culvert check --kube --kubeconfig ~/.kube/config --service-account culvert-agent`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if kube.enabled {
				return kube.run(c.Context(), c.OutOrStdout())
			}
			if os.Geteuid() != 0 {
				return errors.New("check: needs root, to try what the kernel can do")
			}
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
	kube.register(c)
	return c
}

func newUninstallCommand() *cobra.Command {
	var options datapath.Options
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Return this node's pods to plain networking",
		Long: `Remove every BPF program, link and map that an agent of this node pinned, what it remembered of connections, and nothing else. Stop the agent
first. Policies are no longer enforced afterwards.`,
		Example: `  culvert uninstall`,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return errors.New("uninstall: needs root")
			}
			installed, err := datapath.Installed(options)
			if err != nil {
				return err
			}
			if !installed {
				fmt.Fprintf(c.OutOrStdout(), "nothing of Culvert is pinned below %s\n", options.BPFFS)
				return nil
			}
			if err := datapath.Uninstall(options); err != nil {
				return err
			}
			if err := observe.Remove(filepath.Join(filepath.Dir(admin.DefaultSocket), observedFile)); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "removed what Culvert had pinned below %s; pods are on plain networking\n", options.BPFFS)
			return nil
		},
	}
	registerPlaces(c, &options.BPFFS, &options.Cgroup)
	return c
}
