package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/culvert-mesh/culvert/bpf"
	"github.com/culvert-mesh/culvert/policy"
)

const (
	pollEvery = 400 * time.Microsecond
	// enforceTime is after how long a sample counts as one that was never enforced.
	enforceTime = 10 * time.Second
)

// sampler times how long a policy takes from the API server's answer to the kernel. Every local pod has a policy of
// its own, whose mode is flipped; in between it is deleted and made again, which flips the mode too.
type sampler struct {
	*cluster
	modes     *ebpf.Map
	pods      []*sampled
	reference *reference

	mu     sync.Mutex
	times  []time.Duration
	gaps   []time.Duration // between the last look and the one before: what the time is uncertain by
	failed []error
}

// sampled is a local pod. One sample of it is taken at a time.
type sampled struct {
	slot   *slot
	cookie uint64
	mu     sync.Mutex
	mode   policy.Mode
	absent bool // its own policy was deleted
}

// newSampler opens the map that the agent has pinned.
func newSampler(c *cluster, pods []*sampled) (*sampler, error) {
	found, err := filepath.Glob(filepath.Join(c.place.bpffs(), "v*", "maps", "modes"))
	if err != nil || len(found) != 1 {
		return nil, fmt.Errorf("map of modes: found %d of them below %s", len(found), c.place.bpffs())
	}
	m, err := ebpf.LoadPinnedMap(found[0], &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("map of modes: %w", err)
	}
	return &sampler{cluster: c, modes: m, pods: pods}, nil
}

func (x *sampler) close() { _ = x.modes.Close() }

// inForce is what the kernel does with ports that have no mode of their own.
func (x *sampler) inForce(cookie uint64) (policy.Mode, error) {
	var mode uint32
	err := x.modes.Lookup(bpf.MapsModeKey{Cookie: cookie}, &mode)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return policy.Strict, nil
	}
	return policy.Mode(mode), err
}

// settle learns the modes that are in force, and that those are the ones of the pods' own policies.
func (x *sampler) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, enforceTime)
	defer cancel()
	for _, p := range x.pods {
		for {
			mode, err := x.inForce(p.cookie)
			if err != nil {
				return err
			}
			if mode == p.mode {
				break
			}
			if ctx.Err() != nil {
				return fmt.Errorf("pod %s/%s: the kernel has %s, its policy says %s", p.slot.namespace, p.slot.name(), mode, p.mode)
			}
			time.Sleep(changeStep)
		}
	}
	return nil
}

// run takes samples until ctx ends, and waits for those under way.
func (x *sampler) run(ctx context.Context, rate int) {
	var running sync.WaitGroup
	defer running.Wait()
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	for next := 0; ; next++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		p := x.pods[next%len(x.pods)]
		if !p.mu.TryLock() {
			continue // its last sample is still not enforced
		}
		remake := (next/len(x.pods))%2 == 1
		running.Go(func() {
			defer p.mu.Unlock()
			took, gap, err := x.sample(context.WithoutCancel(ctx), p, remake)
			x.mu.Lock()
			defer x.mu.Unlock()
			if err != nil {
				x.failed = append(x.failed, fmt.Errorf("policy of pod %s/%s: %w", p.slot.namespace, p.slot.name(), err))
				return
			}
			x.times, x.gaps = append(x.times, took), append(x.gaps, gap)
		})
	}
}

// sample changes the pod's own policy and waits for the kernel.
func (x *sampler) sample(ctx context.Context, p *sampled, remake bool) (took, gap time.Duration, err error) {
	want := policy.Strict
	if p.mode == policy.Strict {
		want = policy.Permissive
	}
	version, err := x.write(ctx, p, want, remake)
	if err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	if version != "" {
		x.reference.wrote(version, begin)
	}
	p.mode = want
	for last := begin; ; {
		mode, err := x.inForce(p.cookie)
		now := time.Now()
		switch {
		case err != nil:
			return 0, 0, err
		case mode == want:
			return now.Sub(begin), now.Sub(last), nil
		case now.Sub(begin) > enforceTime:
			return 0, 0, fmt.Errorf("%s is not in force after %s", want, enforceTime)
		}
		last = now
		// The runtime's timers are no finer than a millisecond.
		pause := unix.NsecToTimespec(pollEvery.Nanoseconds())
		_ = unix.Nanosleep(&pause, nil)
	}
}

// write makes the mode the wanted one, and returns the version that the policy has then. Without the pod's own policy
// its namespace's counts, which is PERMISSIVE.
func (x *sampler) write(ctx context.Context, p *sampled, want policy.Mode, remake bool) (version string, err error) {
	client := x.istio.SecurityV1().PeerAuthentications(p.slot.namespace)
	object := p.slot.ownPolicy(want)
	switch {
	case p.absent:
		p.absent = false
		object, err = client.Create(ctx, object, meta.CreateOptions{})
	case remake && want == policy.Permissive:
		p.absent = true
		return "", client.Delete(ctx, object.Name, meta.DeleteOptions{})
	default:
		object, err = client.Patch(ctx, object.Name, types.MergePatchType, modePatch(want.String(), rand.Uint32()), meta.PatchOptions{})
	}
	if err != nil {
		return "", err
	}
	return object.ResourceVersion, nil
}

// result returns the times in order, and the 99th percentile of their uncertainty.
func (x *sampler) result() (times []time.Duration, gap time.Duration, failed []error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	slices.Sort(x.times)
	slices.Sort(x.gaps)
	return x.times, percentile(x.gaps, 99), x.failed
}

// percentile is of sorted values.
func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)*p/100, len(sorted)-1)]
}
