package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/daemonset/crds"
)

// installTimeout bounds the command: the kubelet starts its container again, and says so.
const installTimeout = time.Minute

func newCRDsCommand() *cobra.Command {
	var logs logging
	c := &cobra.Command{
		Use:   "crds",
		Short: "Make the kinds that policies are written in, where a cluster has none",
		Long: `Make the kinds PeerAuthentication and DestinationRule in the cluster that this process is a pod of, where they are
absent, and bring those that Culvert made up to date. Kinds that others made (Istio) are left as they are.`,
		Example: `  culvert crds --log-format json`,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			log, err := logs.logger(os.Stderr)
			if err != nil {
				return err
			}
			api, err := crds.InCluster()
			if err != nil {
				return fmt.Errorf("crds: %w", err)
			}
			ctx, stop := context.WithTimeout(c.Context(), installTimeout)
			defer stop()
			return crds.Install(ctx, api, log)
		},
	}
	logs.register(c)
	return c
}
