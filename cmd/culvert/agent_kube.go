package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/culvert-mesh/culvert/agent"
	"github.com/culvert-mesh/culvert/agent/datapath"
	"github.com/culvert-mesh/culvert/agent/enroll/cniconf"
	"github.com/culvert-mesh/culvert/agent/enroll/cri"
	"github.com/culvert-mesh/culvert/agent/enroll/kubelet"
	"github.com/culvert-mesh/culvert/agent/observe"
	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/agent/source/kube"
	"github.com/culvert-mesh/culvert/agent/source/kube/report"
	"github.com/culvert-mesh/culvert/agent/telemetry"
)

// leftoverPatience is how long what is enforced somewhere stays when no pod is known that it belongs to: the API server's
// lists may be behind.
const leftoverPatience = time.Minute

// runtimeTimeout bounds the question which runtime there is.
const runtimeTimeout = 3 * time.Second

const (
	// confirmTimeout bounds how long the agent's end waits to be told from an uninstall. It answers much sooner when nothing
	// is being uninstalled. With what follows it has to stay below the pod's grace of 30 s.
	confirmTimeout = 10 * time.Second
	// farewellTimeout bounds what is done at the uninstall while the permission for it lasts.
	farewellTimeout = 10 * time.Second
)

// kubeFlags are what an agent on Kubernetes needs beside the others.
type kubeFlags struct {
	enabled                    bool
	kubeconfig                 string
	namespace, daemonSet, pod  string
	cniConf, cniBin, cniPlugin string
	cniSocket                  string
	cniFailOpen                bool
	cniTimeout                 time.Duration
	criSocket, kubeletCgroup   string
}

func (f *kubeFlags) register(c *cobra.Command) {
	flags := c.Flags()
	flags.BoolVar(&f.enabled, "kube", false, "take the configuration from the Kubernetes API server")
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "file that says how the API server is reached (default: as a pod of the cluster)")
	flags.StringVar(&f.namespace, "namespace", "culvert-system", "the agent's own namespace")
	flags.StringVar(&f.daemonSet, "daemonset", "", "the agent's own DaemonSet: when it is deleted, the agent takes all of its traces off the node; empty: it never does")
	flags.StringVar(&f.pod, "pod", "", "the agent's own pod, which tells whether the DaemonSet that is deleted is the agent's")
	flags.StringVar(&f.cniConf, "cni-conf-dir", "", "folder of the container runtime's CNI configuration; empty: no plugin is installed")
	flags.StringVar(&f.cniBin, "cni-bin-dir", "/opt/cni/bin", "folder of the container runtime's CNI plugins")
	flags.StringVar(&f.cniPlugin, "cni-plugin", "/usr/local/bin/culvert-cni", "the plugin that is installed there")
	flags.StringVar(&f.cniSocket, "cni-socket", "/run/culvert/cni.sock", "unix socket on which the plugin finds the agent")
	flags.DurationVar(&f.cniTimeout, "cni-timeout", 30*time.Second, "how long the start of a pod waits for the agent before it fails and is tried again")
	flags.BoolVar(&f.cniFailOpen, "cni-fail-open", false, "let pods start without the mesh while the agent is away")
	flags.StringVar(&f.criSocket, "cri-socket", "auto", "unix socket of the container runtime")
	flags.StringVar(&f.kubeletCgroup, "kubelet-cgroup", "auto", "cgroup2 folder of the kubelet, whose probes STRICT lets through; empty: none are")
}

// check names what is missing, before anything is started.
func (f *kubeFlags) check() error {
	if f.cniConf != "" && !filepath.IsAbs(f.cniSocket) {
		return usage("--cni-socket %q: want an absolute path, which the plugin finds too", f.cniSocket)
	}
	return nil
}

// kubeAgent is an agent with what stands round it on Kubernetes.
type kubeAgent struct {
	flags     *agentFlags
	log       *slog.Logger
	options   agent.Options
	source    *kube.Source
	reporter  *report.Reporter
	policies  *report.PolicyStatus
	installer *cniconf.Installer // nil: no plugin
	runtime   *cri.Runtime
	status    *statusServer
	enrolled  *enrolledPods
	known     *lastSnapshot
}

func (f *agentFlags) newKubeAgent(base agent.Options, status *statusServer) (*kubeAgent, error) {
	k := &kubeAgent{flags: f, log: base.Logger, options: base, status: status}
	if err := f.kube.check(); err != nil {
		return nil, err
	}
	kube.LogTo(k.log)
	config, err := kube.Config(f.kube.kubeconfig, "culvert-agent")
	if err != nil {
		return nil, err
	}
	if k.source, err = kube.New(kube.Options{
		Config: config, Node: f.node, RootNamespace: f.rootNamespace, Namespace: f.kube.namespace,
		DaemonSet: f.kube.daemonSet, Pod: f.kube.pod, Logger: k.log, Registerer: k.status.registry, Policies: k.tellPolicies,
	}); err != nil {
		return nil, err
	}
	reporting, err := report.ForConfig(config, f.node, k.log)
	if err != nil {
		return nil, err
	}
	k.reporter = report.New(reporting)
	if k.policies, err = report.PolicyStatusForConfig(config, f.kube.namespace, f.node, k.log); err != nil {
		return nil, err
	}
	k.enrolled = &enrolledPods{Reporter: k.reporter, pods: map[string]*source.Pod{}}
	if k.runtime, err = cri.New(cri.Options{Socket: f.kube.criSocket, Logger: k.log}); err != nil {
		return nil, err
	}
	if f.kube.cniConf != "" {
		k.installer = &cniconf.Installer{
			ConfDir: f.kube.cniConf, BinDir: f.kube.cniBin, Plugin: f.kube.cniPlugin, Logger: k.log,
			KeepBinary: k.needsPlugin,
			Config:     cniconf.Config{Socket: f.kube.cniSocket, Timeout: f.kube.cniTimeout, FailOpen: f.kube.cniFailOpen},
		}
		k.options.CNIPath = f.kube.cniSocket
	}
	k.status.registry.MustRegister(telemetry.BuildInfo("agent", version))
	k.options.Registerer = k.status.registry
	k.known = &lastSnapshot{Source: k.source}
	k.options.Source, k.options.Locator, k.options.Reporter = k.known, k.runtime, k.enrolled
	k.options.Retiring, k.options.Patience = k.source.Uninstalling(), leftoverPatience
	if f.kube.pod != "" {
		k.options.Self = f.kube.namespace + "/" + f.kube.pod
	}
	k.options.Kubelet = f.kube.findKubelet(base.Datapath)
	return k, nil
}

func (k *kubeAgent) tellPolicies(valid []report.PolicyRef, problems []report.PolicyProblem) {
	k.policies.Policies(valid, problems)
}

// needsPlugin reports whether the runtime takes pods down with the plugins that they were started with: CRI-O does, and
// without the binary no such pod would ever end. A runtime that does not answer may be CRI-O.
func (k *kubeAgent) needsPlugin() bool {
	ctx, cancel := context.WithTimeout(context.Background(), runtimeTimeout)
	defer cancel()
	version, err := k.runtime.Version(ctx)
	if err != nil {
		k.log.Warn("container runtime does not answer: the CNI plugin's binary stays, as the runtime may need it", "error", err)
		return true
	}
	return strings.HasPrefix(strings.ToLower(version), "cri-o")
}

func (f *kubeFlags) findKubelet(o datapath.Options) func() (string, error) {
	switch f.kubeletCgroup {
	case "":
		return nil
	case "auto":
		return func() (string, error) { return kubelet.Find("/proc", o.Cgroup) }
	}
	return func() (string, error) { return f.kubeletCgroup, nil }
}

// run ends with ctx: the node stays enforced, unless Culvert is being uninstalled.
func (k *kubeAgent) run(ctx context.Context) error {
	defer k.runtime.Close()
	holds := make(chan struct{})
	k.options.OnReady = func() {
		k.status.ready.Store(true)
		close(holds)
	}
	// What stands round the agent ends after it: a pod that it lets go is still to be reported.
	around, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, groupCtx := errgroup.WithContext(around)
	group.Go(func() error { return k.status.run(groupCtx) })
	group.Go(func() error { return k.reporter.Run(groupCtx) })
	group.Go(func() error { return k.policies.Run(groupCtx) })
	group.Go(func() error { return k.install(groupCtx, holds) })
	group.Go(func() error {
		k.source.WatchUninstall(groupCtx)
		return nil
	})
	farewell := make(chan struct{})
	group.Go(func() error {
		defer close(farewell)
		return k.watchUninstall(groupCtx)
	})
	work, end := context.WithCancel(groupCtx)
	group.Go(func() error {
		defer end()
		return k.await(ctx, work, farewell)
	})
	group.Go(func() error {
		defer stop()
		defer end()
		return agent.Run(work, k.options)
	})
	return errors.Join(group.Wait(), k.leave())
}

// await returns when the agent's work is to end: at once when its pod is only restarted. In an uninstall the agent answers
// the plugin until that is gone, so that no pod's start fails.
func (k *kubeAgent) await(ctx, work context.Context, farewell <-chan struct{}) error {
	select {
	case <-ctx.Done():
	case <-work.Done():
		return nil
	}
	ctx, cancel := context.WithTimeout(work, confirmTimeout)
	defer cancel()
	if !k.source.Confirmed(ctx) {
		return nil
	}
	select {
	case <-farewell: // which is bounded
	case <-work.Done():
	}
	return nil
}

// install waits for the first snapshot: an agent that knows nothing would hold up every pod's start.
func (k *kubeAgent) install(ctx context.Context, holds <-chan struct{}) error {
	if k.installer == nil {
		return nil
	}
	select {
	case <-holds:
		return k.installer.Run(ctx)
	case <-ctx.Done():
		return nil
	}
}

// watchUninstall does what cannot wait for the end of the agent's pod: the permission to take annotations off goes with
// the rest, and no pod's start may wait for an agent that is about to leave.
func (k *kubeAgent) watchUninstall(ctx context.Context) error {
	select {
	case <-k.source.Uninstalling():
	case <-ctx.Done():
		// Told at the last moment, perhaps.
		select {
		case <-k.source.Uninstalling():
		default:
			return nil
		}
	}
	k.log.Info("Culvert is being uninstalled: taking its traces off the node")
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewellTimeout)
	defer cancel()
	var work errgroup.Group
	work.Go(func() error { return k.reporter.RemoveAll(ctx, k.enrolled.and(k.known.annotated())) })
	if k.installer != nil {
		work.Go(k.installer.Uninstall)
	}
	if err := work.Wait(); err != nil {
		k.log.Error("uninstall: traces are left", "error", err)
	}
	return nil
}

// leave returns the node to plain networking, if that is what the end of this agent means.
func (k *kubeAgent) leave() error {
	select {
	case <-k.source.Uninstalling():
	default:
		return nil
	}
	// The sockets were removed by those who listened on them.
	err := datapath.Uninstall(k.options.Datapath)
	if errors.Is(err, datapath.ErrInUse) {
		k.log.Info("another agent runs on this node already: it stays as it is")
		return nil
	}
	err = errors.Join(err, observe.Remove(k.options.ObservedPath))
	if err == nil {
		k.log.Info("uninstalled: pods are on plain networking")
	}
	return err
}

// lastSnapshot remembers what the source published last, for the uninstall.
type lastSnapshot struct {
	source.Source
	last atomic.Pointer[source.Snapshot]
}

// Run implements source.Source.
func (l *lastSnapshot) Run(ctx context.Context, publish func(*source.Snapshot)) error {
	return l.Source.Run(ctx, func(s *source.Snapshot) {
		l.last.Store(s)
		publish(s)
	})
}

// Stale names the resources that are not followed at present.
func (l *lastSnapshot) Stale() []string {
	if s, ok := l.Source.(*kube.Source); ok {
		return s.Stale()
	}
	return nil
}

// annotated returns the pods of this node that carry the annotation, whoever put it on.
func (l *lastSnapshot) annotated() []*source.Pod {
	s := l.last.Load()
	if s == nil {
		return nil
	}
	var all []*source.Pod
	for _, p := range s.Local() {
		if p.Redirection == source.RedirectionEnabled {
			all = append(all, p)
		}
	}
	return all
}

// enrolledPods remembers which pods were reported as enrolled, for the uninstall.
type enrolledPods struct {
	*report.Reporter
	mu   sync.Mutex
	pods map[string]*source.Pod
}

// Enrolled implements agent.Reporter.
func (e *enrolledPods) Enrolled(p *source.Pod) {
	e.mu.Lock()
	e.pods[p.UID] = p
	e.mu.Unlock()
	e.Reporter.Enrolled(p)
}

// NotEnrolled implements agent.Reporter.
func (e *enrolledPods) NotEnrolled(p *source.Pod, reason string) {
	e.forget(p)
	e.Reporter.NotEnrolled(p, reason)
}

// Unenrolled implements agent.Reporter.
func (e *enrolledPods) Unenrolled(p *source.Pod) {
	e.forget(p)
	e.Reporter.Unenrolled(p)
}

func (e *enrolledPods) forget(p *source.Pod) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.pods, p.UID)
}

// and returns the pods that are enrolled and the others, each once.
func (e *enrolledPods) and(others []*source.Pod) []*source.Pod {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := maps.Clone(e.pods)
	for _, p := range others {
		all[p.UID] = p
	}
	return slices.SortedFunc(maps.Values(all), func(a, b *source.Pod) int { return cmp.Compare(a.Ref(), b.Ref()) })
}
