package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/policy"
)

// writers is how many objects are written at a time.
const writers = 32

// seed makes everything that is in the cluster before the agent starts.
func (c *cluster) seed(ctx context.Context, p *plan, progress io.Writer) error {
	o := p.options
	parts := []struct {
		what  string
		count int
		write func(context.Context, int) error
	}{
		{"namespaces", o.namespaces + 1, c.seedNamespace},
		{"nodes", o.nodes, c.seedNode},
		{"policies", o.policies, func(ctx context.Context, i int) error {
			object := p.policyObject(i, seedMode(i))
			_, err := c.istio.SecurityV1().PeerAuthentications(object.Namespace).Create(ctx, object, meta.CreateOptions{})
			return err
		}},
		{"Services", o.services, func(ctx context.Context, i int) error { return c.seedService(ctx, p, i) }},
		{"pods", len(p.slots), func(ctx context.Context, i int) error { return c.seedPod(ctx, p.slots[i]) }},
	}
	for _, part := range parts {
		begin := time.Now()
		fmt.Fprintf(progress, "making %d %s", part.count, part.what)
		all, ctx := errgroup.WithContext(ctx)
		all.SetLimit(writers)
		for i := range part.count {
			if ctx.Err() != nil {
				break
			}
			if i%(part.count/10+1) == 0 {
				fmt.Fprint(progress, ".")
			}
			all.Go(func() error { return part.write(ctx, i) })
		}
		if err := all.Wait(); err != nil {
			fmt.Fprintln(progress)
			return fmt.Errorf("making %s: %w", part.what, err)
		}
		fmt.Fprintf(progress, " %s\n", time.Since(begin).Round(time.Second/10))
	}
	return ctx.Err()
}

// seedMode is the mode that the i-th policy starts with.
func seedMode(i int) policy.Mode {
	if i%3 == 0 {
		return policy.Strict
	}
	return policy.Permissive
}

func (c *cluster) seedNamespace(ctx context.Context, i int) error {
	name := rootNamespace
	if i > 0 {
		name = namespaceName(i - 1)
	}
	_, err := c.core.CoreV1().Namespaces().Create(ctx, namespaceObject(name), meta.CreateOptions{})
	return err
}

func (c *cluster) seedNode(ctx context.Context, i int) error {
	v4, v6 := nodeRanges(i)
	if i == 0 {
		v4, v6 = c.place.node.CIDR4, c.place.node.CIDR6
	}
	_, err := c.core.CoreV1().Nodes().Create(ctx, nodeObject(i, v4.String(), v6.String()), meta.CreateOptions{})
	return err
}

func (c *cluster) seedService(ctx context.Context, p *plan, i int) error {
	service, slice := p.serviceObject(i), p.sliceObject(i, -1)
	if _, err := c.core.CoreV1().Services(service.Namespace).Create(ctx, service, meta.CreateOptions{}); err != nil {
		return err
	}
	_, err := c.core.DiscoveryV1().EndpointSlices(slice.Namespace).Create(ctx, slice, meta.CreateOptions{})
	return err
}

// seedPod makes the pod. Those of the measured node are not started yet: their runtime will tell the agent first.
func (c *cluster) seedPod(ctx context.Context, s *slot) error {
	if s.local != nil {
		return c.makePod(ctx, s)
	}
	return c.createPod(ctx, s)
}

// createPod makes the slot's pod and has it run.
func (c *cluster) createPod(ctx context.Context, s *slot) error {
	if err := c.makePod(ctx, s); err != nil {
		return err
	}
	return c.runPod(ctx, s)
}
