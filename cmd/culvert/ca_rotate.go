package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/identity/ca/kube"
)

// caCluster are the flags that say which CA is meant.
type caCluster struct{ kubeconfig, namespace string }

func (f *caCluster) register(c *cobra.Command) {
	c.Flags().StringVar(&f.kubeconfig, "kubeconfig", "", kubeconfigUsage)
	registerCulvertNamespace(c, &f.namespace)
}

func (f *caCluster) client() (*kube.Client, error) { return kube.NewClient(asKubectl(f.kubeconfig)) }

func newCARotateCommand() *cobra.Command {
	var flags caCluster
	c := &cobra.Command{
		Use:   "rotate root|intermediate",
		Short: "Have the CA replace its root or its intermediate",
		Long: `Ask the CA that leads to replace its root or its intermediate. This does no more than annotate the Secret
culvert-ca-root with the present time; what was made before it is replaced, so asking twice is asking once. The same with
kubectl:

  kubectl annotate --overwrite -n culvert-system secret culvert-ca-root culvert.dev/rotate-root=$(date -u +%FT%TZ)

A new intermediate signs within seconds. A new root is announced first, signs after --root-overlap, and the old one is
dropped when the last certificate below it has expired: "culvert ca status" shows how far that is.`,
		Example: `  culvert ca rotate intermediate
  culvert ca rotate root --kubeconfig ~/.kube/config`,
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"root", "intermediate"},
		RunE: func(c *cobra.Command, args []string) error {
			client, err := flags.client()
			if err != nil {
				return fmt.Errorf("ca rotate: %w", err)
			}
			note := kube.RotateRootNote
			if args[0] == "intermediate" {
				note = kube.RotateIntermediateNote
			}
			if err := kube.Rotate(c.Context(), client, flags.namespace, note, time.Now()); err != nil {
				return fmt.Errorf("ca rotate: %w", err)
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "asked for a new %s\n", args[0])
			return err
		},
	}
	flags.register(c)
	return c
}
