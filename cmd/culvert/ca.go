package main

import (
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/identity/ca/server"
	"github.com/culvert-mesh/culvert/agent/source/kube"
	"github.com/culvert-mesh/culvert/agent/telemetry"
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

On first start it makes a root (Secret culvert-ca-root) and an intermediate that signs (Secret culvert-ca), and replaces
both in time; "culvert ca status" says when. If there is a Secret culvert-ca already, it is used and never written: put
your own CA there in the form of Istio's cacerts. The roots are published in the ConfigMap culvert-ca-root-cert of every
namespace, and to agents by a stream.`,
		Example: `  culvert ca --namespace culvert-system
  culvert ca --kubeconfig ~/.kube/config --namespace culvert-system --address 127.0.0.1:15012
  culvert ca status
  culvert ca rotate root`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if options.Logger, err = logs.logger(os.Stderr); err != nil {
				return err
			}
			if options.TrustDomain, err = spiffeid.TrustDomainFromString(trustDomain); err != nil {
				return usage("--trust-domain %q: %w", trustDomain, err)
			}
			if options.SVIDLife < minSVIDLife {
				return usage("ca: --svid-ttl %s is less than %s", options.SVIDLife, minSVIDLife)
			}
			options.Collectors = []prometheus.Collector{
				telemetry.BuildInfo("ca", version), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
			}
			options.ServeStatus = serveStatus
			kube.LogTo(options.Logger)
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
	flags.DurationVar(&options.IntermediateLife, "intermediate-ttl", 30*24*time.Hour, "life of the intermediate, which is replaced at half of it")
	flags.DurationVar(&options.RootLife, "root-ttl", 10*365*24*time.Hour, "life of the root, which is replaced at 80 % of it")
	flags.DurationVar(&options.RootOverlap, "root-overlap", time.Hour,
		"within this time all who verify have learned a new root; the kubelet alone takes one or two minutes")
	flags.BoolVar(&options.RequireAddress, "require-agent-address", false,
		"refuse tokens that come from an address that is neither their pod's nor its node's (not behind masquerading)")
	flags.Float64Var(&options.NodeRate, "node-rate", 50, "certificates a second for one node")
	flags.IntVar(&options.NodeBurst, "node-burst", 500, "certificates at once for one node")
	logs.register(c)
	c.AddCommand(newCAStatusCommand(), newCARotateCommand())
	return c
}
