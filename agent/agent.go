// Package agent is the privileged half of a node: it turns what a source tells of the cluster into kernel
// state and into what the tunnel needs. It never reads a byte that came over the network.
//
// One goroutine, the loop of Run, owns all state and decides; sources, sessions, SVID renewals and kernel
// events reach it through one channel. There are no locks to order.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/datapath"
	"github.com/culvert-mesh/culvert/agent/enroll"
	"github.com/culvert-mesh/culvert/agent/enroll/cni"
	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/nodepage"
	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/agent/telemetry"
	"github.com/culvert-mesh/culvert/policy"
	"github.com/culvert-mesh/culvert/tunnel/control"
)

const (
	// tickInterval is how often pods are checked for having vanished, and failed enrolments retried.
	tickInterval = 500 * time.Millisecond
	eventBacklog = 1024
	maxClosers   = 4
	// maxLoggedProblems bounds what one snapshot may write to the log.
	maxLoggedProblems = 20
	maxSessions       = 16
)

// Options configure an agent. Those without a comment that says otherwise are required.
type Options struct {
	Node          string // pods with this spec.nodeName are local, and those with none
	Source        source.Source
	Issuer        identity.Issuer
	TrustDomain   spiffeid.TrustDomain
	Datapath      datapath.Options
	ControlPath   string         // the unix socket that the tunnel dials
	TunnelUID     int            // the only user that may be a tunnel
	MeshRanges    []netip.Prefix // pods and Services, beside what the source learns: connections there are captured
	RootNamespace string
	ClusterDomain string // may be empty: cluster.local
	ClusterID     string // of this cluster, for labels; may be empty: Kubernetes
	Enroll        enroll.Options
	Logger        *slog.Logger
	// LogLevel is the Logger's, which root may change. May be nil: then nobody may.
	LogLevel *slog.LevelVar

	Locator Locator // may be nil: pods carry source.NetnsAnnotation
	// Patience is how long what is enforced in a namespace stays when no pod is known that it belongs to: lists of pods
	// may be behind. 0 is for sources that are never behind.
	Patience time.Duration
	// Self is the agent's own pod, "namespace/name". A list of pods without it is not this node's, or not this day's.
	// Empty when the agent is no pod.
	Self     string
	Reporter Reporter // may be nil
	// CNIPath is the unix socket on which the CNI plugin announces pods; empty: nobody does.
	CNIPath string
	// Kubelet finds the cgroup of the node's kubelet, whose probes STRICT lets through. May be nil: there is none.
	Kubelet func() (cgroup string, err error)
	// Retiring is closed when the agent is about to go for good: no pod's start waits for it any more. May be nil.
	Retiring <-chan struct{}
	// TrustDomainAliases are earlier or other names of the own trust domain, whose members are peers too.
	TrustDomainAliases []spiffeid.TrustDomain
	// AdminPath is the unix socket on which people on this node are answered; empty: they are not.
	AdminPath string
	// ObservedPath is the file in which what was seen of connections outlives the agent; empty: it does not.
	ObservedPath string
	// OnStart is called once with what answers people, before the agent works. May be nil.
	OnStart    func(nodepage.Source)
	Version    string                // of the program, for those who ask
	Registerer prometheus.Registerer // of the agent's metrics; may be nil
	// OnReady is called once, when the first snapshot holds. May be nil.
	OnReady func()
}

// Agent is the state of a running agent, owned by the goroutine of its loop.
type Agent struct {
	Options
	log      *slog.Logger
	path     *datapath.Datapath
	keeper   *identity.Keeper
	metrics  *telemetry.Metrics
	observer *observer
	started  time.Time
	events   chan func()
	ctx      context.Context
	tasks    sync.WaitGroup

	snapshot      *source.Snapshot
	skipped       bool // a snapshot was left out: the next one's Changes do not tell all
	policies      *policy.Set
	rules         *policy.RuleSet
	workloads     map[uint64]*workload
	byPod         map[string]*workload   // "namespace/name"
	wanted        map[string]*source.Pod // of this node, as the snapshot has them
	unenrollable  map[string]string      // pod -> why, as last logged
	searches      map[string]*search     // pods whose namespace is looked for
	searchers     chan struct{}          // bounds how many at once
	ended         map[string]ending      // pods whose runtime took the sandbox down
	lingering     map[uint64]string      // cookie -> sandbox of pods that are no object any more, and may still run
	unclaimed     map[uint64]time.Time   // cookie -> since when no pod is known for it
	undecided     bool                   // a pod's Namespace is not known yet
	mail          mailbox
	retiring      bool
	additions     map[*addition]struct{}  // pods being started, of which the source knows nothing yet
	outside       map[netip.Addr]struct{} // known addresses outside of all ranges
	sessions      map[*session]struct{}
	sweeps        []sweep
	closing       sync.WaitGroup
	closers       chan struct{} // bounds how many pods\' connections are closed at once
	generation    uint64
	verifications uint64                              // numbers what is in verifying
	unresolved    bool                                // a local pod's namespace is not known: state without an owner may be its
	touched       touched                             // what routes have to follow since they were last told
	incomplete    bool                                // the kernel did not take all of it
	problems      map[problem]struct{}                // of the source, as last logged
	domains       map[spiffeid.TrustDomain]struct{}   // whose roots the tunnels were told
	verifying     map[uint64]chan<- *control.Verified // handshakes that a tunnel makes for people, by number
	reported      map[string]string
}

// Run is the agent. It returns when ctx ends, leaving the kernel state in force for its successor, or when
// it cannot start.
func Run(ctx context.Context, o Options) error {
	// First: where another agent answers, its programs are not to be touched.
	listener, err := control.Listen(o.ControlPath, control.ListenOptions{UID: o.TunnelUID, GID: o.TunnelUID})
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	attached, err := listenCNI(o.CNIPath)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	path, err := datapath.Open(o.Datapath)
	if err != nil {
		return errors.Join(fmt.Errorf("datapath: %w", err), listener.Close(), closeCNI(attached))
	}
	people, err := listenAdmin(o.AdminPath)
	if err != nil {
		return errors.Join(err, listener.Close(), closeCNI(attached), path.Close())
	}
	ctx, stop := context.WithCancel(ctx)
	a := &Agent{
		Options: o, log: o.Logger, path: path,
		events: make(chan func(), eventBacklog), ctx: ctx,
		workloads: map[uint64]*workload{}, byPod: map[string]*workload{},
		unenrollable: map[string]string{}, reported: map[string]string{},
		searches: map[string]*search{}, ended: map[string]ending{}, lingering: map[uint64]string{}, unclaimed: map[uint64]time.Time{}, additions: map[*addition]struct{}{},
		sessions:  map[*session]struct{}{},
		verifying: map[uint64]chan<- *control.Verified{},
		closers:   make(chan struct{}, maxClosers),
		searchers: make(chan struct{}, maxSearches),
	}
	a.metrics = a.newMetrics()
	a.keeper, a.observer, a.started = a.newKeeper(), newObserver(a, o.ObservedPath), time.Now()
	if o.Registerer != nil {
		o.Registerer.MustRegister(a.metrics)
		defer o.Registerer.Unregister(a.metrics)
	}
	if o.OnStart != nil {
		o.OnStart(inspector{a, a.observer})
	}

	failed := make(chan error, 8)
	start := func(name string, f func(context.Context) error) {
		a.tasks.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				failed <- fmt.Errorf("%s: %w", name, err)
			}
		})
	}
	start("source", func(ctx context.Context) error {
		return o.Source.Run(ctx, a.deliver)
	})
	if attached != nil {
		start("CNI socket", func(ctx context.Context) error { return cni.Serve(ctx, attached, attachments{a}, a.log) })
	}
	if people != nil {
		start("admin socket", a.serveAdmin(people))
	}
	start("trust bundle", a.followBundle)
	start("observation", a.observer.follow)
	start("kubelet", a.followKubelet)
	start("retirement", a.followRetirement)
	start("container runtime", a.followSandboxes)
	start("kernel state", a.followKernel)
	start("control socket", func(ctx context.Context) error { return a.acceptSessions(ctx, listener) })
	start("refusals", func(ctx context.Context) error {
		return path.Refusals(ctx, func(r datapath.Refusal) {
			a.metrics.Unreported(r.Suppressed)
			if !a.postOrDrop(func() { a.refused(r) }) {
				a.metrics.Unreported(1)
			}
		})
	})
	a.log.Info("agent started", "node", o.Node, "trust_domain", o.TrustDomain.Name())
	err = a.loop(ctx, failed)
	stop()
	err = errors.Join(err, listener.Close())
	a.tasks.Wait()
	err = errors.Join(err, closeCNI(attached))
	a.keeper.Close()
	a.closing.Wait()
	a.release()
	return errors.Join(err, path.Close())
}

func (a *Agent) loop(ctx context.Context, failed <-chan error) error {
	tick := time.NewTicker(tickInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case event := <-a.events:
			event()
		case <-tick.C:
			a.tick()
		}
	}
}

// post hands an event to the loop, and waits for room unless the agent ends: then it returns false.
func (a *Agent) post(event func()) bool {
	select {
	case <-a.ctx.Done():
		return false
	default:
	}
	select {
	case a.events <- event:
		return true
	case <-a.ctx.Done():
		return false
	}
}

// postOrDrop is for events that an outsider can cause at will.
func (a *Agent) postOrDrop(event func()) bool {
	select {
	case a.events <- event:
		return true
	default:
		return false
	}
}

// tick notices what sends no event.
func (a *Agent) tick() {
	a.runSweeps(time.Now())
	for _, w := range a.workloads {
		if !w.netns.Present() {
			a.log.Warn("network namespace vanished", "workload", w.pod.Ref(), "netns", w.pod.NetnsPath)
			// Only its name may be gone, or another have taken it: what is enforced there stays until it is
			// known where the pod is.
			a.letGo(w)
			a.unresolved = true
		}
	}
	for _, w := range a.workloads {
		a.replaceLostListeners(w)
	}
	if a.snapshot == nil {
		return
	}
	a.dropGone()
	if a.unresolved {
		a.enrollPods()
	}
	if a.incomplete {
		a.retry()
	}
	a.updateRoutes(&source.Changes{})
}

// retry writes again what the kernel did not take at the last snapshot, for want of room perhaps.
func (a *Agent) retry() {
	a.incomplete = false
	a.capture(&source.Changes{All: true})
	for _, w := range a.workloads {
		a.applyModes(w)
	}
}

// release closes what the process holds and leaves the kernel's state as it is.
func (a *Agent) release() {
	for s := range a.sessions {
		s.conn.Close()
	}
	for _, w := range a.workloads {
		w.close()
	}
}

type problem struct{ object, err string }

// reportProblems logs what the source could not use, each when it appears.
func (a *Agent) reportProblems(all []source.Problem) {
	now := make(map[problem]struct{}, len(all))
	fresh := 0
	for _, p := range all {
		key := problem{p.Object, p.Err.Error()}
		if _, known := a.problems[key]; !known {
			if fresh++; fresh <= maxLoggedProblems {
				a.log.Error("cannot be used; what was in force stays", "object", p.Object, "error", p.Err)
			}
		}
		now[key] = struct{}{}
	}
	if fresh > maxLoggedProblems {
		a.log.Error("more objects cannot be used", "number", fresh-maxLoggedProblems)
	}
	a.problems = now
}

// reportOnce logs a condition when it appears or changes, not at every look.
func (a *Agent) reportOnce(key string, err error) {
	if a.reported[key] == err.Error() {
		return
	}
	a.reported[key] = err.Error()
	a.log.Error("cannot be used; what was in force stays", "object", key, "error", err)
}
