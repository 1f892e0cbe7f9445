package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/datapath"
)

// newPrepareCommand is what the agent's pod runs before the agent: mounting needs more privilege than the agent has.
func newPrepareCommand() *cobra.Command {
	var bpffs string
	c := &cobra.Command{
		Use:   "prepare",
		Short: "Mount the BPF file system where the host has none",
		Long: `Mount the BPF file system on /sys/fs/bpf, unless it is mounted, and make Culvert's folder on it. In a pod it
needs a privileged container with Bidirectional mount propagation, so that the mount is the host's.`,
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return errors.New("prepare: needs root, to mount")
			}
			if err := datapath.Prepare(bpffs); err != nil {
				return fmt.Errorf("prepare: %w", err)
			}
			return nil
		},
	}
	c.Flags().StringVar(&bpffs, "bpffs", defaultBPFFS, "folder on a BPF file system for what outlives the agent")
	return c
}
