package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/e2e/demo"
)

func newDemoCommand() *cobra.Command {
	var (
		options    demo.Options
		ip, output string
	)
	c := &cobra.Command{
		Use:   "demo",
		Short: "Play the walkthrough on two nodes made of network namespaces on this machine",
		Long: `Build two nodes with pods from network namespaces, run an agent and a tunnel on each, and play the walkthrough:
real HTTP requests under a series of policies, with a capture of the link between the nodes. It needs root, touches
nothing outside of its own namespaces, cgroup and run directory, and removes them when it ends.
The exit code is 0 only if every row came out as expected.`,
		Example: `  culvert demo
  culvert demo --keep --ip both`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			versions, ok := map[string][]int{"4": {4}, "6": {6}, "both": {4, 6}}[ip]
			if !ok {
				return usage("--ip %q: want 4, 6 or both", ip)
			}
			if output != "table" && output != "json" {
				return usage("-o %q: want table or json", output)
			}
			options.Versions, options.Progress = versions, c.ErrOrStderr()
			return runDemo(c, options, output)
		},
	}
	c.PersistentFlags().StringVar(&options.RunDir, "run-dir", demo.DefaultRunDir, "folder for state, manifests, sockets and logs")
	c.Flags().StringVar(&options.Prefix, "prefix", demo.DefaultPrefix, "begins the names of namespaces and is that of the cgroup")
	c.Flags().StringVar(&ip, "ip", "4", "IP version of the requests: 4, 6 or both")
	c.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	c.Flags().BoolVar(&options.Keep, "keep", false, "leave everything standing at the end")
	c.Flags().StringArrayVar(&options.Steps, "step", nil, "play only this step, repeatable")
	c.AddCommand(newDemoDownCommand(&options.RunDir), newWorkloadCommand())
	return c
}

func runDemo(c *cobra.Command, options demo.Options, output string) error {
	result, err := demo.Run(c.Context(), options)
	write := result.WriteTable
	if output == "json" {
		write = result.WriteJSON
	}
	if output == "json" || len(result.Rows) > 0 {
		err = errors.Join(err, write(c.OutOrStdout()))
	}
	if result.Kept {
		fmt.Fprint(c.ErrOrStderr(), demo.LookRound(options.RunDir, options.Prefix))
	}
	if errors.Is(err, demo.ErrInterrupted) {
		return &exitError{code: 130, err: err} // as a shell reports SIGINT
	}
	if err != nil {
		return err
	}
	if !result.OK {
		return &exitError{code: 1, err: errors.New("demo: not every row came out as expected")}
	}
	return nil
}

func newDemoDownCommand(runDir *string) *cobra.Command {
	return &cobra.Command{
		Use:     "down",
		Short:   "Remove what a kept or crashed demo left",
		Example: `  culvert demo down`,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if _, err := os.Stat(*runDir); errors.Is(err, os.ErrNotExist) {
				fmt.Fprintf(c.OutOrStdout(), "nothing to remove: %s does not exist\n", *runDir)
				return nil
			}
			if err := demo.Down(*runDir); err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), "removed")
			return nil
		},
	}
}

// newWorkloadCommand is what the demo starts inside pods.
func newWorkloadCommand() *cobra.Command {
	c := &cobra.Command{Use: "workload", Short: "Processes of the demo", Hidden: true}
	c.AddCommand(newServeCommand(), newRequestCommand(), newHoldCommand(), newUnprivilegedCommand())
	return c
}

func newServeCommand() *cobra.Command {
	var (
		name   string
		listen []string
	)
	c := &cobra.Command{Use: "serve", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return demo.Serve(c.Context(), name, listen)
	}}
	c.Flags().StringVar(&name, "name", "", "what the server calls itself")
	c.Flags().StringArrayVar(&listen, "listen", nil, "address, repeatable")
	return c
}

func newRequestCommand() *cobra.Command {
	var (
		marker  string
		timeout time.Duration
	)
	c := &cobra.Command{Use: "request URL", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		attempt := demo.Request(c.Context(), args[0], marker, timeout)
		if err := json.NewEncoder(os.Stdout).Encode(attempt); err != nil {
			return fmt.Errorf("write outcome: %w", err)
		}
		if !attempt.OK {
			return &exitError{code: 1, err: errors.New(attempt.Error)}
		}
		return nil
	}}
	c.Flags().StringVar(&marker, "marker", "", "string to send along")
	c.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "for the whole request")
	return c
}

func newHoldCommand() *cobra.Command {
	var (
		marker   string
		interval time.Duration
	)
	c := &cobra.Command{Use: "hold URL", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		return demo.Hold(c.Context(), args[0], marker, interval, os.Stdout)
	}}
	c.Flags().StringVar(&marker, "marker", "", "string to send along")
	c.Flags().DurationVar(&interval, "interval", 100*time.Millisecond, "time between requests")
	return c
}

func newUnprivilegedCommand() *cobra.Command {
	var uid int
	c := &cobra.Command{Use: "unprivileged UID -- ARGUMENTS", Args: cobra.MinimumNArgs(2), RunE: func(_ *cobra.Command, args []string) error {
		if _, err := fmt.Sscanf(args[0], "%d", &uid); err != nil || uid <= 0 {
			return fmt.Errorf("user id %q: want a positive number", args[0])
		}
		return demo.Unprivileged(uid, args[1:])
	}}
	return c
}
