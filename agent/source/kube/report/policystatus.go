package report

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// LeaseName is the Lease that says which agent writes the status of policies.
const LeaseName = "culvert-status"

const (
	// A status that is written is an event for every agent of the cluster: five a second are 5,000 a second with
	// 1,000 nodes. 10,000 policies take half an hour the first time; those with problems come first.
	statusQPS, statusBurst = 5, 10
	// pause is how long what could not be written is left alone.
	pause = time.Minute
)

// PolicyRef names a policy in the version that was read.
type PolicyRef struct {
	Kind            string // PeerAuthentication or DestinationRule
	Namespace, Name string
	UID             string // optional: makes Events find their object without asking for it
	Generation      int64
}

// PolicyProblem is a policy that cannot be used, and why.
type PolicyProblem struct {
	PolicyRef
	Err error
}

// PolicyOptions configure a PolicyStatus. All fields but Logger are required.
type PolicyOptions struct {
	Client    kubernetes.Interface
	Dynamic   dynamic.Interface
	Namespace string       // the agent's own, where the Lease is
	Identity  string       // the agent's, different for each: its node's name
	Logger    *slog.Logger // nil: silent
}

// PolicyStatus writes into the status of policies whether they were accepted. Every agent has one and knows the same
// policies; the one that holds a Lease writes.
type PolicyStatus struct {
	PolicyOptions
	timing timing
	limit  *rate.Limiter
	once   onceLog
	events *eventWriter
	leads  atomic.Bool
	writes atomic.Uint64

	changed chan struct{} // holds one token when there is news
	mu      sync.Mutex
	input   *policyInput
}

// policyInput is what the source told last. It is not changed afterwards.
type policyInput struct {
	valid    []PolicyRef
	problems []PolicyProblem
}

// NewPolicyStatus returns a PolicyStatus that writes nothing until Run.
func NewPolicyStatus(o PolicyOptions) *PolicyStatus {
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	s := &PolicyStatus{
		PolicyOptions: o, timing: sparse(), once: onceLog{log: o.Logger},
		limit:   rate.NewLimiter(statusQPS, statusBurst),
		changed: make(chan struct{}, 1),
	}
	s.events = newEventWriter(o.Client, o.Identity, &s.once)
	return s
}

// Policies takes all policies of the cluster as they are now, those that are in use and those that cannot be. The
// slices must not be changed afterwards. Call it when everything was read, and after each change.
func (s *PolicyStatus) Policies(valid []PolicyRef, problems []PolicyProblem) {
	s.mu.Lock()
	s.input = &policyInput{valid, problems}
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Leads reports whether this agent is the one that writes.
func (s *PolicyStatus) Leads() bool { return s.leads.Load() }

// Writes is how many conditions were written, for metrics.
func (s *PolicyStatus) Writes() uint64 { return s.writes.Load() }

func (s *PolicyStatus) latest() *policyInput {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.input
}

// Run takes part in the election, and writes while this agent leads, until ctx ends.
func (s *PolicyStatus) Run(ctx context.Context) error {
	var tasks sync.WaitGroup
	tasks.Go(func() { s.events.run(ctx) })
	s.elections(ctx)
	tasks.Wait()
	return nil
}

// write is the work of the one that leads.
func (s *PolicyStatus) write(ctx context.Context) {
	s.leads.Store(true)
	defer s.leads.Store(false)
	s.Logger.Info("this agent writes the status of policies")
	b := newBoard(s)
	tick := time.NewTicker(s.timing.tick)
	defer tick.Stop()
	for ctx.Err() == nil {
		if input := s.latest(); input != nil {
			b.round(ctx, input)
		}
		select {
		case <-ctx.Done():
		case <-s.changed:
		case <-tick.C:
		}
	}
}

// PolicyStatusForConfig makes the clients of a PolicyStatus. What it writes can wait: they are slow on purpose.
func PolicyStatusForConfig(config *rest.Config, namespace, identity string, log *slog.Logger) (*PolicyStatus, error) {
	slow := rest.CopyConfig(config)
	slow.QPS, slow.Burst = statusQPS, 2*statusBurst
	client, err := kubernetes.NewForConfig(slow)
	if err != nil {
		return nil, fmt.Errorf("status of policies: %w", err)
	}
	objects, err := dynamic.NewForConfig(slow)
	if err != nil {
		return nil, fmt.Errorf("status of policies: %w", err)
	}
	return NewPolicyStatus(PolicyOptions{Client: client, Dynamic: objects, Namespace: namespace, Identity: identity, Logger: log}), nil
}
