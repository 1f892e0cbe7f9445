package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent"
	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/datapath"
	"github.com/culvert-mesh/culvert/agent/enroll"
	"github.com/culvert-mesh/culvert/agent/nodepage"
	"github.com/culvert-mesh/culvert/agent/source/file"
	"github.com/culvert-mesh/culvert/agent/telemetry"
)

const defaultBPFFS = "/sys/fs/bpf/culvert"

// observedFile is what the agent remembers of connections, beside its admin socket.
const observedFile = "observed.json"

type agentFlags struct {
	config, node, bpffs, cgroup, controlPath string
	tunnelUID                                int
	meshCIDRs                                []string
	rootNamespace, domain                    string
	identity                                 identityFlags
	adminSocket                              string
	injectionLabel                           bool
	statusAddress, metricsAddress            string
	logging                                  logging
	kube                                     kubeFlags
}

func newAgentCommand() *cobra.Command {
	var f agentFlags
	c := &cobra.Command{
		Use:   "agent (--kube | --config DIR --mesh-cidr CIDR)",
		Short: "Run the privileged half: policy, BPF programs, identities",
		Long: `Run the privileged half of a node: it reads the configuration, attaches and updates the BPF programs,
opens sockets inside pods, fetches SVIDs and hands all that to the tunnel. It needs root. When it ends, what it
enforced stays in force until 'culvert agent' runs again or 'culvert uninstall' removes it.`,
		Example: `  culvert agent --config /etc/culvert --node "$(hostname)" --mesh-cidr 10.244.0.0/16 --mesh-cidr 10.96.0.0/12
  culvert agent --kube --node "$NODE_NAME" --ca-address culvert-ca.culvert-system.svc:15012 --cni-conf-dir /etc/cni/net.d`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			status, err := listenStatus(f.statusAddress)
			if err != nil {
				return err
			}
			log, endLog, err := f.logging.queued(status.registry)
			if err != nil {
				return err
			}
			defer endLog()
			if err := status.openMetrics(f.metricsAddress); err != nil {
				log.Error("metrics are not served there; the node is enforced all the same", "error", err)
			}
			options, err := f.options(log)
			if err != nil {
				return err
			}
			page := new(startingSource)
			options.OnStart = page.start
			status.page = nodepage.Handler(page, log)
			options.LogLevel = &f.logging.inForce
			issuer, end, err := f.identity.issuer(options.TrustDomain, options.Logger)
			if err != nil {
				return err
			}
			defer end()
			options.Issuer = issuer
			if f.kube.enabled {
				k, err := f.newKubeAgent(options, status)
				if err != nil {
					return err
				}
				return k.run(c.Context())
			}
			status.registry.MustRegister(telemetry.BuildInfo("agent", version))
			options.Registerer = status.registry
			options.OnReady = func() { status.ready.Store(true) }
			return runTogether(c.Context(), status.run, func(ctx context.Context) error { return agent.Run(ctx, options) })
		},
	}
	hostname, _ := os.Hostname()
	flags := c.Flags()
	flags.StringVar(&f.config, "config", "", "folder of Kubernetes manifests, followed while it changes; in place of --kube")
	flags.StringVar(&f.node, "node", hostname, "this node's name: pods with this spec.nodeName, or with none, are local")
	registerPlaces(c, &f.bpffs, &f.cgroup)
	flags.StringVar(&f.controlPath, "control", "/run/culvert/control.sock", "unix socket on which the tunnel finds the agent")
	flags.IntVar(&f.tunnelUID, "tunnel-uid", 61508, "the one user that may connect as tunnel")
	flags.StringSliceVar(&f.meshCIDRs, "mesh-cidr", nil, "range of pods or Services, repeatable: pods' connections to it are captured")
	flags.StringVar(&f.rootNamespace, "root-namespace", "istio-system", "namespace whose policies hold for the whole mesh")
	flags.StringVar(&f.domain, "cluster-domain", "cluster.local", "DNS domain of Services, in DestinationRule hosts")
	flags.BoolVar(&f.injectionLabel, "injection-label", true, "enrol namespaces labelled istio-injection=enabled too")
	flags.StringVar(&f.statusAddress, "status-address", "", "where /healthz, /readyz and /metrics are served; empty: nowhere")
	flags.StringVar(&f.adminSocket, "admin-socket", "", "unix socket on which 'culvert certs' finds the agent (default: admin.sock beside --control)")
	flags.StringVar(&f.metricsAddress, "metrics-address", "", "where /metrics alone is served as well, for a Prometheus elsewhere; empty: nowhere")
	f.identity.register(c)
	f.kube.register(c)
	f.logging.register(c)
	return c
}

// registerPlaces adds the flags that say where the kernel state lives.
func registerPlaces(c *cobra.Command, bpffs, cgroup *string) {
	c.Flags().StringVar(bpffs, "bpffs", defaultBPFFS, "folder on a BPF file system for what outlives the agent")
	c.Flags().StringVar(cgroup, "cgroup", "", "cgroup2 folder whose processes are governed (default: where cgroup2 is mounted)")
}

func (f *agentFlags) options(log *slog.Logger) (agent.Options, error) {
	var none agent.Options
	if os.Geteuid() != 0 {
		return none, errors.New("agent: needs root, to load BPF programs and enter pods' network namespaces")
	}
	if err := f.checkConfig(); err != nil {
		return none, err
	}
	if f.tunnelUID <= 0 {
		return none, fmt.Errorf("--tunnel-uid %d: want a user other than root: the tunnel must have no privilege", f.tunnelUID)
	}
	if err := f.identity.check(f.kube.enabled); err != nil {
		return none, err
	}
	// The tunnel's user has to pass through this folder.
	if err := os.MkdirAll(filepath.Dir(f.controlPath), 0o755); err != nil {
		return none, fmt.Errorf("--control: folder: %w", err)
	}
	if f.adminSocket == "" {
		f.adminSocket = filepath.Join(filepath.Dir(f.controlPath), filepath.Base(admin.DefaultSocket))
	}
	td, aliases, err := f.identity.domains()
	if err != nil {
		return none, err
	}
	ranges, err := parsePrefixes(f.meshCIDRs)
	if err != nil {
		return none, err
	}
	options := agent.Options{
		Node:        f.node,
		TrustDomain: td, TrustDomainAliases: aliases,
		AdminPath: f.adminSocket, Version: version,
		ObservedPath:  filepath.Join(filepath.Dir(f.adminSocket), observedFile),
		Datapath:      datapath.Options{BPFFS: f.bpffs, Cgroup: f.cgroup, Logger: log},
		ControlPath:   f.controlPath,
		TunnelUID:     f.tunnelUID,
		MeshRanges:    ranges,
		RootNamespace: f.rootNamespace,
		ClusterDomain: f.domain,
		ClusterID:     f.identity.clusterID,
		Enroll:        enroll.Options{InjectionLabel: f.injectionLabel},
		Logger:        log,
	}
	if f.kube.enabled {
		return options, nil
	}
	options.Source = file.New(f.config, file.Options{Logger: log, Node: f.node, RootNamespace: f.rootNamespace})
	return options, nil
}

// checkConfig tells the two ways to be configured apart.
func (f *agentFlags) checkConfig() error {
	switch {
	case f.kube.enabled && f.config != "":
		return errors.New("agent: --kube and --config exclude each other")
	case f.kube.enabled && f.node == "":
		return errors.New("agent: --kube needs --node, the name of the Node object")
	case f.kube.enabled:
		return nil
	case f.config == "":
		return errors.New("agent: --kube or --config DIR is required")
	}
	info, err := os.Stat(f.config)
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("--config %s: is not a folder", f.config)
	}
	return nil
}

func parsePrefixes(texts []string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("--mesh-cidr %q: want a range such as 10.244.0.0/16", text)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("--mesh-cidr %q: has bits behind its length; did you mean %s?", text, p.Masked())
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, nil
}
