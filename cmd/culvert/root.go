package main

import (
	"github.com/spf13/cobra"
)

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "culvert",
		Short: "Mutual TLS and PeerAuthentication for the pods of a node, without sidecars",
		// Errors are printed once, by main, and a failing run is no reason to print the usage.
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(
		newAgentCommand(),
		newTunnelCommand(),
		newCACommand(),
		newCRDsCommand(),
		newPolicyCommand(),
		newDemoCommand(),
		newCheckCommand(),
		newUninstallCommand(),
		newPrepareCommand(),
	)
	return root
}
