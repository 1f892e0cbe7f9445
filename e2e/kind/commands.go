package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/e2e/kind/artifact"
	"github.com/culvert-mesh/culvert/e2e/kind/binaries"
	"github.com/culvert-mesh/culvert/e2e/kind/cluster"
)

// downLimit bounds the removal; nothing in it waits for a network.
const downLimit = 3 * time.Minute

// tool is what the commands share.
type tool struct{ log *slog.Logger }

func newRootCommand(log *slog.Logger) *cobra.Command {
	root := &cobra.Command{
		Use:           "kind",
		Short:         "A Kubernetes cluster of two nodes on this machine, without pulling an image",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	t := tool{log: log}
	root.AddCommand(t.up(), t.down(), t.load(), t.kubeconfig(), t.kubectl(), t.exec(), t.restart(), t.binaries(), t.test())
	return root
}

// build returns the folder of modules and the cache.
func (t tool) build(ctx context.Context) (string, *artifact.Store, error) {
	source, err := sourceDir(ctx)
	if err != nil {
		return "", nil, err
	}
	store, err := artifact.Open("", t.log)
	return source, store, err
}

func (t tool) cluster(ctx context.Context) (*cluster.Cluster, error) {
	source, store, err := t.build(ctx)
	if err != nil {
		return nil, err
	}
	return cluster.New(cluster.Config{Source: source, Store: store, Log: t.log}), nil
}

func (t tool) up() *cobra.Command {
	var o cluster.Options
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Make the cluster, unless it is there, and wait until it works (root)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.cluster(cmd.Context())
			if err != nil {
				return err
			}
			return c.Up(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&o.IPFamily, "ip-family", cluster.Dual, "addresses of pods and Services: ipv4 or dual")
	return cmd
}

func (t tool) down() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Remove the cluster and whatever was made for it; the cache stays",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), downLimit)
			defer cancel()
			c, err := t.cluster(ctx)
			if err != nil {
				return err
			}
			return c.Down(ctx)
		},
	}
}

func (t tool) load() *cobra.Command {
	return &cobra.Command{
		Use:   "load ARCHIVE...",
		Short: "Import archives of images, as `docker save` makes them, into every node",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, archives []string) error {
			c, err := t.cluster(cmd.Context())
			if err != nil {
				return err
			}
			for _, path := range archives {
				if err := c.LoadImage(cmd.Context(), path); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func (t tool) kubeconfig() *cobra.Command {
	return &cobra.Command{
		Use:   "kubeconfig",
		Short: "Print the path of the kubeconfig; its server is reachable in the cluster's network namespace only",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.cluster(cmd.Context())
			if err != nil {
				return err
			}
			if c.Netns() != "" {
				fmt.Fprintln(cmd.ErrOrStderr(), "use it as: nsenter --net="+c.Netns(), "-- kubectl --kubeconfig", c.Kubeconfig())
			}
			fmt.Fprintln(cmd.OutOrStdout(), c.Kubeconfig())
			return nil
		},
	}
}

func (t tool) kubectl() *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl ARGUMENT...",
		Short:              "Run kubectl against the cluster",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := t.cluster(cmd.Context())
			if err != nil {
				return err
			}
			argv, err := c.KubectlCommand(cmd.Context())
			if err != nil {
				return err
			}
			return attached(cmd.Context(), append(argv, args...))
		},
	}
}

// attached runs a program on this process's terminal. Where the program says what is wrong, nothing is added.
func attached(ctx context.Context, argv []string) error {
	program := exec.CommandContext(ctx, argv[0], argv[1:]...)
	program.Stdin, program.Stdout, program.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := program.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("%s ended with %d", argv[0], exit.ExitCode())
	}
	return err
}

func (t tool) exec() *cobra.Command {
	var stdin bool
	cmd := &cobra.Command{
		Use:   "exec NODE COMMAND...",
		Short: "Run a command on a node and print its output",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := t.cluster(cmd.Context())
			if err != nil {
				return err
			}
			var in io.Reader
			if stdin {
				in = cmd.InOrStdin()
			}
			out, err := c.Exec(cmd.Context(), args[0], in, args[1:]...)
			fmt.Fprint(cmd.OutOrStdout(), out)
			return err
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVarP(&stdin, "stdin", "i", false, "pass standard input on")
	return cmd
}

func (t tool) restart() *cobra.Command {
	return &cobra.Command{
		Use:   "restart NODE",
		Short: "Restart a node and wait until it is ready again",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := t.cluster(cmd.Context())
			if err != nil {
				return err
			}
			return c.RestartNode(cmd.Context(), args[0])
		},
	}
}

func (t tool) binaries() *cobra.Command {
	return &cobra.Command{
		Use:   "binaries",
		Short: "Build the programs if need be and print the folder they are in: kube-apiserver, etcd, kubectl, ...",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			source, store, err := t.build(cmd.Context())
			if err != nil {
				return err
			}
			set, err := binaries.Build(cmd.Context(), store, source)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), set.Dir)
			return nil
		},
	}
}
