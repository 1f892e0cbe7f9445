package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	istio "istio.io/client-go/pkg/apis/security/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// reference is a plain watch of all policies. When it hears of a change tells how much of the time until a policy is
// enforced is the API server's, on a machine that has to carry everything.
type reference struct {
	running sync.WaitGroup
	watch   watch.Interface

	mu      sync.Mutex
	seen    map[string]time.Time // by resource version
	written map[string]time.Time
}

func startReference(ctx context.Context, c *cluster) (*reference, error) {
	client := c.istio.SecurityV1().PeerAuthentications("")
	list, err := client.List(ctx, meta.ListOptions{Limit: 1})
	if err != nil {
		return nil, fmt.Errorf("policies: %w", err)
	}
	r := &reference{seen: map[string]time.Time{}, written: map[string]time.Time{}}
	hours := int64(24 * 3600) // the client's own limit would end it
	r.watch, err = client.Watch(ctx, meta.ListOptions{ResourceVersion: list.ResourceVersion, TimeoutSeconds: &hours})
	if err != nil {
		return nil, fmt.Errorf("watch of policies: %w", err)
	}
	r.running.Go(func() {
		for e := range r.watch.ResultChan() {
			now := time.Now()
			if p, ok := e.Object.(*istio.PeerAuthentication); ok {
				r.mu.Lock()
				r.seen[p.ResourceVersion] = now
				r.mu.Unlock()
			}
		}
	})
	return r, nil
}

// wrote notes that the API server answered a write.
func (r *reference) wrote(version string, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.written[version] = at
}

// stop ends the watch, waits for it and returns how long it took to hear of each write, in order.
func (r *reference) stop() []time.Duration {
	r.watch.Stop()
	r.running.Wait()
	var times []time.Duration
	for version, at := range r.written {
		if seen, ok := r.seen[version]; ok {
			times = append(times, max(seen.Sub(at), 0))
		}
	}
	slices.Sort(times)
	return times
}
