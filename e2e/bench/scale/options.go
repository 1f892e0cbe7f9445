package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// binariesVariable names the folder with the Kubernetes binaries where the flag does not.
const binariesVariable = "CULVERT_KUBE_BINARIES"

type options struct {
	binaries, agent, runDir, crds, profile, keep string
	pods, localPods, nodes                       int
	namespaces, services, policies               int
	rate, samples                                int // a second
	duration                                     time.Duration
	watchers                                     int
	output                                       string
	assert                                       bool
	agentFlags                                   string
}

func parseOptions(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("scale", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.binaries, "binaries", os.Getenv(binariesVariable), "folder with kube-apiserver, etcd and kubectl (default: $"+binariesVariable+")")
	flags.StringVar(&o.agent, "agent", "bin/culvert", "the program whose agent is measured")
	flags.StringVar(&o.agentFlags, "agent-flags", "", "further flags for the agent, separated by blanks")
	flags.StringVar(&o.crds, "crds", "daemonset/crds", "folder with the CRDs of PeerAuthentication and DestinationRule")
	flags.StringVar(&o.runDir, "run-dir", "/run/culvert-scale", "made, and removed at the end")
	flags.StringVar(&o.profile, "profile", "", "folder for a CPU profile of the agent by perf, during the changes")
	flags.StringVar(&o.keep, "keep", "", "folder in which the made cluster is kept, so that the next run of that size need not make it")
	flags.IntVar(&o.pods, "pods", 50_000, "pods in the cluster")
	flags.IntVar(&o.localPods, "local-pods", 110, "of these, pods of the measured node")
	flags.IntVar(&o.nodes, "nodes", 450, "nodes in the cluster")
	flags.IntVar(&o.namespaces, "namespaces", 1_000, "namespaces that the pods are in")
	flags.IntVar(&o.services, "services", 5_000, "Services, each with an EndpointSlice")
	flags.IntVar(&o.policies, "policies", 10_000, "PeerAuthentications")
	flags.IntVar(&o.rate, "rate", 200, "changes a second")
	flags.IntVar(&o.samples, "samples", 10, "of these, policies whose enforcement is timed")
	flags.DurationVar(&o.duration, "duration", time.Minute, "how long there are changes")
	flags.IntVar(&o.watchers, "watchers", 100, "watches of all pods that are added to find out what one costs the API server; 0: none")
	flags.StringVar(&o.output, "o", "table", "table or json")
	flags.BoolVar(&o.assert, "assert", false, "fail when a target is missed")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	return o, o.check()
}

func (o *options) check() error {
	switch {
	case o.binaries == "":
		return fmt.Errorf("--binaries DIR or %s is required: a folder with kube-apiserver, etcd and kubectl", binariesVariable)
	case o.output != "table" && o.output != "json":
		return fmt.Errorf("-o %q: table or json", o.output)
	case o.localPods < 1 || o.localPods > maxLocalPods:
		return fmt.Errorf("--local-pods %d: 1 to %d", o.localPods, maxLocalPods)
	case o.pods < o.localPods:
		return fmt.Errorf("--pods %d: fewer than the %d local ones", o.pods, o.localPods)
	case o.nodes < 2 || o.nodes > maxNodes:
		return fmt.Errorf("--nodes %d: 2 to %d", o.nodes, maxNodes)
	case (o.pods-o.localPods+o.nodes-2)/(o.nodes-1) > maxPodsPerNode:
		return fmt.Errorf("--pods %d on %d nodes: more than %d on one", o.pods, o.nodes, maxPodsPerNode)
	case o.namespaces < 1 || o.services < 1:
		return errors.New("--namespaces and --services: at least 1")
	case o.policies < o.localPods+1:
		return fmt.Errorf("--policies %d: each local pod has one of its own, and the mesh has one", o.policies)
	case o.rate < 1 || o.samples < 1 || o.samples > o.rate:
		return errors.New("--rate and --samples: at least 1, and no more samples than changes")
	case o.duration <= 0:
		return fmt.Errorf("--duration %s: must be positive", o.duration)
	case o.watchers < 0:
		return errors.New("--watchers: not less than 0")
	}
	return o.findFiles()
}

// findFiles makes the paths absolute and looks whether they are there, before anything is started.
func (o *options) findFiles() error {
	for _, path := range []*string{&o.binaries, &o.agent, &o.crds, &o.runDir} {
		abs, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		*path = abs
	}
	var err error
	for _, name := range []string{"kube-apiserver", "etcd", "kubectl"} {
		_, missing := os.Stat(filepath.Join(o.binaries, name))
		err = cmp.Or(err, missing)
	}
	for _, path := range []string{o.agent, o.crds} {
		_, missing := os.Stat(path)
		err = cmp.Or(err, missing)
	}
	if err != nil {
		return fmt.Errorf("%w (make build makes bin/culvert)", err)
	}
	return nil
}
