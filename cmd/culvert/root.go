package main

import (
	"os"

	"github.com/spf13/cobra"
)

// version is what the linker is told (-X main.version=...): scripts/image does.
var version = "dev"

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Version: version,
		Use:     "culvert",
		Short:   "Mutual TLS and PeerAuthentication for the pods of a node, without sidecars",
		// Errors are printed once, by main, and a failing run is no reason to print the usage.
		SilenceErrors: true,
		SilenceUsage:  true,
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: displayName(os.Args[0])},
	}
	root.AddCommand(
		newAgentCommand(),
		newTunnelCommand(),
		newCACommand(),
		newCRDsCommand(),
		newPolicyCommand(),
		newDemoCommand(),
		newStatusCommand(),
		newDescribeCommand(),
		newCanCommand(),
		newCertsCommand(),
		newFlowsCommand(),
		newReadinessCommand(),
		newBugreportCommand(),
		newLogLevelCommand(),
		newCheckCommand(),
		newUninstallCommand(),
		newPrepareCommand(),
		newExitCodesTopic(),
	)
	addCompletion(root)
	root.InitDefaultHelpCmd()
	understood(root)
	return root
}
