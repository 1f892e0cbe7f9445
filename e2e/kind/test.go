package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/e2e/kind/cluster"
	"github.com/culvert-mesh/culvert/e2e/kind/tools"
	"github.com/culvert-mesh/culvert/e2e/kind/walk"
)

// test plays the walkthrough and the rest of package walk on the cluster.
func (t tool) test() *cobra.Command {
	var (
		keep, list  bool
		only, image string
		program     string
		overlay     string
		family      string
	)
	cmd := &cobra.Command{
		Use:   "test",
		Short: "Install Culvert in the cluster, see whether it does what it promises, and remove it",
		Long: `Install Culvert from its manifests, play every row, remove Culvert, look that nothing is left, and print a table. The
cluster is made if there is none. On the cluster that E2E_KUBECONFIG names, rows that need its nodes are left out, the
image has to be there already, and E2E_TOOLS_IMAGE may name a copy of the test application's image that it can pull.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			pattern, err := regexp.Compile(only)
			if err != nil {
				return fmt.Errorf("--only: %w", err)
			}
			if list {
				for _, name := range walk.Rows(pattern) {
					fmt.Fprintln(cmd.OutOrStdout(), name)
				}
				return nil
			}
			o := walk.Options{Keep: keep, Culvert: program, Overlay: overlay, Progress: cmd.ErrOrStderr(), NodeAccess: os.Getenv("E2E_KUBECONFIG") == "",
				Tools: cmp.Or(os.Getenv("E2E_TOOLS_IMAGE"), tools.Image)}
			if only != "" {
				o.Only = pattern
			}
			return t.walk(cmd.Context(), cmd, o, image, family)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&keep, "keep", false, "leave Culvert and the pods of the tests in the cluster")
	flags.BoolVar(&list, "list", false, "print the rows instead")
	flags.StringVar(&only, "only", "", "play the rows that match this regular expression, written as with --list")
	flags.StringVar(&image, "image", "bin/culvert-image.tar", "archive of the product's image, as make image writes it")
	flags.StringVar(&program, "culvert", "bin/culvert", "the product's command line, as make build writes it")
	flags.StringVar(&overlay, "overlay", "", "folder for kubectl apply -k (default: daemonset/overlays/kind of the checkout)")
	flags.StringVar(&family, "ip-family", cluster.Dual, "of a cluster that has to be made: ipv4 or dual")
	return cmd
}

func (t tool) walk(ctx context.Context, cmd *cobra.Command, o walk.Options, image, family string) error {
	source, err := sourceDir(ctx)
	if err != nil {
		return err
	}
	if o.Overlay == "" {
		o.Overlay = filepath.Join(source, "..", "..", "daemonset", "overlays", "kind")
	}
	if o.Culvert, err = filepath.Abs(o.Culvert); err != nil {
		return err
	}
	if _, err := os.Stat(o.Culvert); err != nil {
		return fmt.Errorf("command line of the product: %w (make build writes it)", err)
	}
	if o.NodeAccess {
		if _, err := os.Stat(image); err != nil {
			return fmt.Errorf("image of the product: %w (make image writes it)", err)
		}
		o.Image = image
	}
	c, err := t.cluster(ctx)
	if err != nil {
		return err
	}
	// One that answers is used as it is: `up` would make it anew when what it is made of has changed.
	if _, err := c.Nodes(ctx); err != nil {
		if err := c.Up(ctx, cluster.Options{IPFamily: family}); err != nil {
			return err
		}
	}
	o.Cluster = c
	result, err := walk.Run(ctx, o)
	if writeErr := result.Write(cmd.OutOrStdout()); err == nil {
		err = writeErr
	}
	if err == nil && !result.OK() {
		err = errors.New("some rows did not come out as expected")
	}
	return err
}
