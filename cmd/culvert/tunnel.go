package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/culvert-mesh/culvert/agent/datapath/flows"
	agenttelemetry "github.com/culvert-mesh/culvert/agent/telemetry"
	"github.com/culvert-mesh/culvert/tunnel"
	"github.com/culvert-mesh/culvert/tunnel/telemetry"
)

func newTunnelCommand() *cobra.Command {
	var (
		options        tunnel.Options
		sameNode       string
		address        string
		sample         float64
		metricsAddress string
		logs           logging
	)
	c := &cobra.Command{
		Use:   "tunnel",
		Short: "Run the unprivileged half: mutual TLS and HBONE",
		Long: `Run the unprivileged half of a node: it takes listeners, sockets and identities from the agent and does
TLS and HTTP/2. It needs no capability and calls nothing that container
runtimes forbid by default; run it as a user of its own.`,
		Example: `  culvert tunnel --control /run/culvert/control.sock`,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			status, err := listenStatus(address)
			if err != nil {
				return err
			}
			log, end, err := logs.queued(status.registry)
			if err != nil {
				return err
			}
			defer end()
			if err := status.openMetrics(metricsAddress); err != nil {
				log.Error("metrics are not served there; connections are carried all the same", "error", err)
			}
			options.Logger, options.LogLevel, options.Version = log, &logs.inForce, version
			if sample < 0 || sample > 1 {
				return fmt.Errorf("--access-log-sample %g: want a share between 0 and 1", sample)
			}
			options.AccessLog = &tunnel.AccessLog{Sample: sample}
			options.Metrics = telemetry.New()
			status.registry.MustRegister(options.Metrics, agenttelemetry.BuildInfo("tunnel", version))
			status.metrics = options.Metrics.Handler(status.registry)
			if options.DrainTimeout < 0 {
				return fmt.Errorf("--drain-timeout %s: is negative", options.DrainTimeout)
			}
			switch sameNode {
			case "splice":
				options.SameNode = tunnel.SameNodeSplice
			case "mtls":
				options.SameNode = tunnel.SameNodeMTLS
			default:
				return fmt.Errorf("--same-node %q: want splice or mtls", sameNode)
			}
			options.Redirection = flows.Flows{}
			// Once it has met an agent it serves, whether or not the agent is there.
			options.OnSession = func(connected bool) { status.ready.Store(status.ready.Load() || connected) }
			return runTogether(c.Context(), status.run, func(ctx context.Context) error { return tunnel.Run(ctx, options) })
		},
	}
	flags := c.Flags()
	flags.StringVar(&options.ControlPath, "control", "/run/culvert/control.sock", "unix socket of the agent")
	flags.StringVar(&sameNode, "same-node", "splice", "between pods of this node: splice (identities checked, no TLS) or mtls")
	flags.DurationVar(&options.DrainTimeout, "drain-timeout", 5*time.Second, "how long open connections may go on when asked to stop")
	flags.StringVar(&address, "status-address", "", "where /healthz, /readyz and /metrics are served; empty: nowhere")
	flags.StringVar(&metricsAddress, "metrics-address", "", "where /metrics alone is served as well, for a Prometheus elsewhere; empty: nowhere")
	flags.Float64Var(&sample, "access-log-sample", 1, "share of finished connections that are logged, 0 to 1; refused and failed ones are whatever it is, ten a second and workload at most")
	logs.register(c)
	return c
}

// runTogether runs a helper for as long as the main task runs, and ends both when either fails.
func runTogether(ctx context.Context, helper, main func(context.Context) error) error {
	group, groupCtx := errgroup.WithContext(ctx)
	helperCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	group.Go(func() error { return helper(helperCtx) })
	group.Go(func() error {
		defer stop()
		return main(groupCtx)
	})
	return group.Wait()
}
