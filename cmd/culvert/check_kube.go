package main

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/source/kube"
	"github.com/culvert-mesh/culvert/agent/source/kube/preflight"
)

var errKubeCheck = errors.New("check: the agent could not work in this cluster as it is; the table says why")

// kubeCheck are the flags of check --kube.
type kubeCheck struct {
	enabled    bool
	kubeconfig string
	options    preflight.Options
}

func (k *kubeCheck) register(c *cobra.Command) {
	flags := c.Flags()
	flags.BoolVar(&k.enabled, "kube", false, "check the cluster instead: API server, permissions, kinds of policy")
	flags.StringVar(&k.kubeconfig, "kubeconfig", "", kubeconfigUsage)
	registerCulvertNamespace(c, &k.options.Namespace)
	flags.StringVar(&k.options.DaemonSet, "daemonset", preflight.DefaultDaemonSet, "the agent's own DaemonSet")
	flags.StringVar(&k.options.ServiceAccount, "service-account", "", "check the permissions of this account in --culvert-namespace, not one's own")
}

func (k *kubeCheck) run(ctx context.Context, out io.Writer) error {
	config, err := kube.Config(asKubectl(k.kubeconfig), "culvert-check")
	if err != nil {
		return err
	}
	results := preflight.Check(ctx, config, k.options)
	if err := preflight.WriteTable(out, results); err != nil {
		return err
	}
	if preflight.AnyFailed(results) {
		return errKubeCheck
	}
	return nil
}
