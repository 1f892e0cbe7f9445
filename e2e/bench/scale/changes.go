package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/culvert-mesh/culvert/policy"
)

// kind is one sort of change.
type kind struct {
	name   string
	share  int // of all writes, in percent; the rest are samples
	writes int // requests that it consists of
	do     func(context.Context, *rand.Rand) error
}

// changer makes changes at a steady rate. It does not slow down when the API server does, until maxChanging changes
// are under way.
type changer struct {
	*cluster
	plan  *plan
	kinds []kind

	mu      sync.Mutex
	done    map[string]int // writes by kind
	failed  []error        // the first few
	failure int
	late    int // changes that had to wait for others
}

const (
	maxChanging = 64
	changeStep  = 5 * time.Millisecond
	maxFailures = 5
)

func newChanger(c *cluster, p *plan) *changer {
	x := &changer{cluster: c, plan: p, done: map[string]int{}}
	x.kinds = []kind{
		{"pod status", 34, 1, x.changeStatus},
		{"pod deleted, made, started", 30, 3, x.replacePod},
		{"pod labels", 11, 1, x.changeLabels},
		{"EndpointSlice", 14, 1, x.changeSlice},
		{"PeerAuthentication", 11, 1, x.changePolicy},
	}
	return x
}

// run makes changes until ctx ends, and waits for those under way.
func (x *changer) run(ctx context.Context, rate int) {
	random := rand.New(rand.NewPCG(1, uint64(rate)))
	slots := make(chan struct{}, maxChanging)
	var running sync.WaitGroup
	defer running.Wait()
	tick := time.NewTicker(changeStep)
	defer tick.Stop()
	begin, made := time.Now(), 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for due := int(time.Since(begin).Seconds() * float64(rate)); made < due; {
			k := x.pick(random)
			made += k.writes
			own := rand.New(rand.NewPCG(random.Uint64(), 0))
			if !x.enter(ctx, slots) {
				return
			}
			running.Go(func() {
				defer func() { <-slots }()
				// Not interrupted: half a change would leave a slot without its pod.
				x.note(k, k.do(context.WithoutCancel(ctx), own))
			})
		}
	}
}

func (x *changer) enter(ctx context.Context, slots chan<- struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	default:
	}
	x.mu.Lock()
	x.late++
	x.mu.Unlock()
	select {
	case slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// pick chooses a kind so that the shares come out in writes.
func (x *changer) pick(random *rand.Rand) kind {
	total := 0.0
	for _, k := range x.kinds {
		total += float64(k.share) / float64(k.writes)
	}
	at := random.Float64() * total
	for _, k := range x.kinds {
		if at -= float64(k.share) / float64(k.writes); at < 0 {
			return k
		}
	}
	return x.kinds[0]
}

func (x *changer) note(k kind, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err == nil {
		x.done[k.name] += k.writes
		return
	}
	if x.failure++; len(x.failed) < maxFailures {
		x.failed = append(x.failed, fmt.Errorf("%s: %w", k.name, err))
	}
}

// total is how many writes were made so far.
func (x *changer) total() (writes int, byKind map[string]int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	byKind = map[string]int{}
	for name, n := range x.done {
		byKind[name] = n
		writes += n
	}
	return writes, byKind
}

// someSlot returns a locked slot, from the given one on.
func (x *changer) someSlot(random *rand.Rand, from int) *slot {
	for {
		s := x.plan.slots[from+random.IntN(len(x.plan.slots)-from)]
		if s.mu.TryLock() {
			return s
		}
	}
}

// changeStatus is what kubelet writes when a probe of a container changes its mind.
func (x *changer) changeStatus(ctx context.Context, random *rand.Rand) error {
	s := x.someSlot(random, 0)
	defer s.mu.Unlock()
	patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":"True","lastTransitionTime":%q,"message":"change %d"}]}}`,
		time.Now().UTC().Format(time.RFC3339), random.Uint32())
	_, err := x.core.CoreV1().Pods(s.namespace).Patch(ctx, s.name(), types.StrategicMergePatchType, []byte(patch), as("kubelet"), "status")
	return err
}

// as names who changes a field: each name adds to an object's size.
func as(manager string) meta.PatchOptions { return meta.PatchOptions{FieldManager: manager} }

// replacePod is a rollout's work: a pod goes, another comes in its place.
func (x *changer) replacePod(ctx context.Context, random *rand.Rand) error {
	if len(x.plan.slots) == x.plan.options.localPods {
		return nil
	}
	s := x.someSlot(random, x.plan.options.localPods)
	defer s.mu.Unlock()
	now := int64(0)
	if err := x.core.CoreV1().Pods(s.namespace).Delete(ctx, s.name(), meta.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		return err
	}
	s.generation++
	return x.createPod(ctx, s)
}

func (x *changer) changeLabels(ctx context.Context, random *rand.Rand) error {
	s := x.someSlot(random, 0)
	defer s.mu.Unlock()
	s.version++
	patch := fmt.Sprintf(`{"metadata":{"labels":{"version":"v%d"}}}`, s.version%10)
	_, err := x.core.CoreV1().Pods(s.namespace).Patch(ctx, s.name(), types.MergePatchType, []byte(patch), as("kube-controller-manager"))
	return err
}

// changeSlice makes one endpoint unready, or all ready.
func (x *changer) changeSlice(ctx context.Context, random *rand.Rand) error {
	slice := x.plan.sliceObject(random.IntN(x.plan.options.services), random.IntN(x.plan.endpoints()+1)-1)
	slice.Labels["change"] = fmt.Sprint(random.Uint32())
	_, err := x.core.DiscoveryV1().EndpointSlices(slice.Namespace).Update(ctx, slice, meta.UpdateOptions{})
	return err
}

// changePolicy flips a policy that is for no local pod alone.
func (x *changer) changePolicy(ctx context.Context, random *rand.Rand) error {
	first := 1 + x.plan.options.localPods
	if x.plan.options.policies == first {
		return nil
	}
	mode := policy.Permissive
	if random.IntN(2) == 0 {
		mode = policy.Strict
	}
	object := x.plan.policyObject(first+random.IntN(x.plan.options.policies-first), mode)
	patch := modePatch(object.Spec.Mtls.Mode.String(), random.Uint32())
	_, err := x.istio.SecurityV1().PeerAuthentications(object.Namespace).Patch(ctx, object.Name, types.MergePatchType, patch, meta.PatchOptions{})
	return err
}

func modePatch(mode string, change uint32) []byte {
	return fmt.Appendf(nil, `{"metadata":{"annotations":{"change":"%d"}},"spec":{"mtls":{"mode":%q}}}`, change, strings.ToUpper(mode))
}

// makePod and runPod are the two writes by which a pod appears: the scheduler's part is in the first.
func (c *cluster) makePod(ctx context.Context, s *slot) error {
	pod, err := c.core.CoreV1().Pods(s.namespace).Create(ctx, s.podObject(), meta.CreateOptions{FieldManager: "kube-controller-manager"})
	if err == nil {
		s.uid = string(pod.UID)
	}
	return err
}

func (c *cluster) runPod(ctx context.Context, s *slot) error {
	pod := s.podObject()
	pod.Status = s.running()
	_, err := c.core.CoreV1().Pods(s.namespace).UpdateStatus(ctx, pod, meta.UpdateOptions{FieldManager: "kubelet"})
	return err
}
