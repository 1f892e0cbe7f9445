package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/identity/ca/server"
)

func newCACommand() *cobra.Command {
	var (
		options     server.Options
		trustDomain string
		logs        logging
	)
	c := &cobra.Command{
		Use:   "ca",
		Short: "Run the certificate authority of a cluster",
		Long: `Run the certificate authority that agents fetch SVIDs from (istio.v1.auth.IstioCertificateService). It signs for
an agent only what runs on that agent's node: the agent's token is reviewed by the API server and says which node that is.
The root is kept in the Secret culvert-ca, made on first start; its certificate is published in the ConfigMap
culvert-ca-root-cert.`,
		Example: `  culvert ca --namespace culvert-system
  culvert ca --kubeconfig ~/.kube/config --namespace culvert-system --address 127.0.0.1:15012`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if options.Logger, err = logs.logger(os.Stderr); err != nil {
				return err
			}
			if options.TrustDomain, err = spiffeid.TrustDomainFromString(trustDomain); err != nil {
				return fmt.Errorf("--trust-domain %q: %w", trustDomain, err)
			}
			if options.SVIDLife < minSVIDLife {
				return fmt.Errorf("ca: --svid-ttl %s is less than %s", options.SVIDLife, minSVIDLife)
			}
			return server.Run(c.Context(), options)
		},
	}
	flags := c.Flags()
	flags.StringVar(&options.Kubeconfig, "kubeconfig", "", "file that says how the API server is reached (default: as a pod of the cluster)")
	flags.StringVar(&options.Namespace, "namespace", "culvert-system", "namespace of the root's Secret, the bundle's ConfigMap and the agents")
	flags.StringVar(&options.Address, "address", ":15012", "where agents are served")
	flags.StringVar(&options.StatusAddress, "status-address", ":15022", "where /healthz, /readyz and /metrics are served")
	flags.StringVar(&trustDomain, "trust-domain", "cluster.local", "SPIFFE trust domain")
	flags.StringVar(&options.ClusterDomain, "cluster-domain", "cluster.local", "DNS domain of Services")
	flags.StringVar(&options.Service, "service", "culvert-ca", "name of the Service under which agents reach this")
	flags.StringSliceVar(&options.Names, "dns-name", nil, "further name in the server's certificate, repeatable")
	flags.StringSliceVar(&options.Audiences, "audience", []string{"culvert-ca"}, "audience that tokens must be for, repeatable")
	flags.StringSliceVar(&options.Accounts, "agent-account", nil, "service account of agents as namespace/name, repeatable (default: culvert-agent in --namespace)")
	flags.DurationVar(&options.SVIDLife, "svid-ttl", 24*time.Hour, "life of certificates where none is asked for, and the longest")
	flags.Float64Var(&options.NodeRate, "node-rate", 50, "certificates a second for one node")
	flags.IntVar(&options.NodeBurst, "node-burst", 500, "certificates at once for one node")
	logs.register(c)
	return c
}
