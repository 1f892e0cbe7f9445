// Package report tells the cluster what an agent did: Events on pods and policies, the annotation that marks
// enrolled pods, and conditions in the status of policies.
//
//	agent's loop ──wish──▶ entry per pod ──workqueue──▶ writers ──PATCH──▶ annotation
//	             ╰─event─▶ bounded channel ──▶ correlator ──▶ Event
//	source ──Policies──▶ PolicyStatus, on one agent of the cluster at a time ──▶ conditions, Events
//
// Nothing here is needed for enforcement, so nothing here may hold it up: every call returns at once, queues are
// bounded, and what does not fit is counted and dropped. Only the latest wish for a pod counts.
package report

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"

	"github.com/culvert-mesh/culvert/agent/source"
)

const (
	// maxPods bounds the pods that are remembered; kubelet runs 110 on a node unless told otherwise.
	maxPods = 4096
	// writers are enough for a node: a thousand nodes write at the same time when a namespace is labelled.
	writers = 4
	// settle is how long a pod's own observation may lag behind what was written here.
	settle = 5 * time.Second
	// requestTimeout ends a write to an API server that hangs.
	requestTimeout = 10 * time.Second
	minRetry       = 250 * time.Millisecond
	maxRetry       = time.Minute

	// A pod whose label flaps has its annotation written four times at once, then every five seconds.
	podBurst    = 4
	podInterval = 5 * time.Second

	// What one agent asks of the API server at most. Peers wait for annotations, nobody waits for Events, and the
	// farewell cannot wait.
	annotationQPS, annotationBurst = 50, 150
	eventQPS, eventBurst           = 5, 30
	fastQPS, fastBurst             = 1000, 1000
)

// Options configure a Reporter. Client and Node are required.
type Options struct {
	Client kubernetes.Interface
	// Events is for Events, with a pace of its own. nil: Client.
	Events kubernetes.Interface
	// Fast is for RemoveAll: a client that does not wait for its turn. nil: Client.
	Fast   kubernetes.Interface
	Node   string
	Logger *slog.Logger // nil: silent
}

// ForConfig makes the three clients. They share their connections, so that the farewell finds one open.
func ForConfig(config *rest.Config, node string, log *slog.Logger) (Options, error) {
	o := Options{Node: node, Logger: log}
	for _, c := range []struct {
		client     *kubernetes.Interface
		qps, burst int
	}{{&o.Client, annotationQPS, annotationBurst}, {&o.Events, eventQPS, eventBurst}, {&o.Fast, fastQPS, fastBurst}} {
		own := rest.CopyConfig(config)
		own.QPS, own.Burst, own.RateLimiter = float32(c.qps), c.burst, nil
		own.ContentType = "application/vnd.kubernetes.protobuf"
		own.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
		client, err := kubernetes.NewForConfig(own)
		if err != nil {
			return Options{}, err
		}
		*c.client = client
	}
	return o, nil
}

// Reporter tells of this node's pods. Its methods may be called concurrently, also before Run.
type Reporter struct {
	client, fast kubernetes.Interface
	log          *slog.Logger
	events       *eventWriter
	queue        workqueue.TypedRateLimitingInterface[types.UID]
	once         onceLog
	written      atomic.Uint64
	failures     atomic.Uint64
	forgotten    atomic.Uint64

	mu       sync.Mutex
	pods     map[types.UID]*entry
	draining bool
}

// Stats are counts since the start, for metrics.
type Stats struct {
	Annotations   uint64 // annotations put on or taken off
	Failures      uint64 // attempts that failed, of annotations and Events
	Events        uint64 // Events written
	EventsDropped uint64 // by the limits for each object, or because the queue was full
	PodsDropped   uint64 // wishes that found no room
	Pending       int    // pods whose annotation is still to be written
}

// New returns a Reporter that queues until Run.
func New(o Options) *Reporter {
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if o.Events == nil {
		o.Events = o.Client
	}
	if o.Fast == nil {
		o.Fast = o.Client
	}
	r := &Reporter{
		client: o.Client, fast: o.Fast, log: o.Logger,
		pods: map[types.UID]*entry{},
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[types.UID](minRetry, maxRetry)),
		once: onceLog{log: o.Logger},
	}
	r.events = newEventWriter(o.Events, o.Node, &r.once)
	return r
}

// Run writes what is reported until ctx ends. It waits for what it has begun.
func (r *Reporter) Run(ctx context.Context) error {
	var tasks sync.WaitGroup
	for range writers {
		tasks.Go(func() {
			for r.next(ctx) {
			}
		})
	}
	tasks.Go(func() { r.events.run(ctx) })
	<-ctx.Done()
	r.queue.ShutDown()
	tasks.Wait()
	return nil
}

// Stats returns the counts as they are now.
func (r *Reporter) Stats() Stats {
	s := Stats{
		Annotations: r.written.Load(), Failures: r.failures.Load() + r.events.failures.Load(),
		Events: r.events.written.Load(), EventsDropped: r.events.dropped.Load(), PodsDropped: r.forgotten.Load(),
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.pods {
		if !e.done() {
			s.Pending++
		}
	}
	return s
}

// Enrolled tells that the pod's connections are covered.
func (r *Reporter) Enrolled(pod *source.Pod) {
	r.wish(pod, true, "")
}

// NotEnrolled tells that the pod asks to be covered and is not.
func (r *Reporter) NotEnrolled(pod *source.Pod, reason string) {
	r.wish(pod, false, reason)
}

// Unenrolled tells that the pod is on plain networking, whether or not it ever was covered.
func (r *Reporter) Unenrolled(pod *source.Pod) {
	r.wish(pod, false, "")
}

// wish takes down what is wanted for a pod. All three calls end here, so that the last one wins.
func (r *Reporter) wish(pod *source.Pod, want bool, reason string) {
	if pod.UID == "" {
		return // of a source without an API server
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.draining {
		return
	}
	uid := types.UID(pod.UID)
	e := r.pods[uid]
	if e == nil {
		if e = r.enter(pod, now); e == nil {
			return
		}
		if want && pod.Redirection == source.RedirectionEnabled {
			e.told = reasonEnrolled // by this agent's predecessor
		}
	}
	e.want = want
	r.tell(e, pod, reason)
	e.observe(pod.Redirection, now)
	if e.doubt {
		r.queue.AddAfter(uid, settle)
	}
	if e.have != e.wanted() {
		r.schedule(uid, e)
	}
}

// schedule has the annotation written when it is the pod's turn. Whoever writes it just now looks again when done.
func (r *Reporter) schedule(uid types.UID, e *entry) {
	if !e.queued && !e.busy {
		e.queued = true
		r.queue.AddAfter(uid, e.limit.Reserve().Delay())
	}
}

// enter makes room for one more pod.
func (r *Reporter) enter(pod *source.Pod, now time.Time) *entry {
	if len(r.pods) >= maxPods {
		for uid, e := range r.pods {
			if e.done() && !e.busy && now.Sub(e.wrote) >= settle {
				delete(r.pods, uid)
			}
		}
	}
	if len(r.pods) >= maxPods {
		r.forgotten.Add(1)
		r.once.warn("too many pods", "pod not reported: too many wait to be written", "workload", pod.Ref())
		return nil
	}
	e := &entry{namespace: pod.Namespace, name: pod.Name, limit: rate.NewLimiter(rate.Every(podInterval), podBurst)}
	r.pods[types.UID(pod.UID)] = e
	return e
}

// tell sends an Event when there is something new to say.
func (r *Reporter) tell(e *entry, pod *source.Pod, reason string) {
	object := podObject(pod)
	switch {
	case e.want:
		if e.told != reasonEnrolled {
			e.told = reasonEnrolled
			r.events.send(object, normal, reasonEnrolled, "connections of this pod are covered by the mesh")
		}
	case reason != "":
		if what := reasonNotEnrolled + ": " + reason; e.told != what {
			e.told = what
			r.events.send(object, warning, reasonNotEnrolled, reason)
		}
	default:
		e.told = ""
	}
}

// RemoveAll takes the annotation off these pods at once, whatever else waits, and accepts no wish afterwards. It
// is for the uninstall, when the permission to do so is about to go: it gives up when that is gone, or when ctx ends,
// and returns what it could not do. It works without Run as well.
func (r *Reporter) RemoveAll(ctx context.Context, pods []*source.Pod) error {
	r.mu.Lock()
	r.draining = true
	waits := map[types.UID]chan struct{}{}
	for uid, e := range r.pods {
		e.want = false
		if e.busy {
			waits[uid] = e.idle
		}
	}
	r.mu.Unlock()
	return removeAll(ctx, pods, func(ctx context.Context, pod *source.Pod) error {
		uid := types.UID(pod.UID)
		if idle := waits[uid]; idle != nil {
			// An annotation that is being put on would land after ours was taken off.
			select {
			case <-idle:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		err := annotate(ctx, r.fast, pod.Namespace, pod.Name, uid, false)
		if err == nil {
			r.written.Add(1)
		}
		if errors.Is(err, errOtherPod) {
			return nil
		}
		return err
	})
}
