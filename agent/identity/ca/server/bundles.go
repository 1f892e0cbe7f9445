package server

import (
	"context"
	"crypto/x509"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/wire/bundlepb"
)

const (
	maxWatches = 8192
	// Whoever reaches the CA may watch, so one address cannot take the place of all others.
	maxWatchesOfAddress = 64
)

// source has the authority in force, and tells when it is another.
type source interface {
	Authority() *ca.Authority
	Changed() <-chan struct{}
}

// bundles tells agents the roots.
type bundles struct {
	bundlepb.UnimplementedTrustBundleServer
	source  source
	over    <-chan struct{} // closed when the server ends
	metrics *metrics

	mu    sync.Mutex
	count int
	by    map[string]int // address
}

func newBundles(ctx context.Context, s source, m *metrics) *bundles {
	return &bundles{source: s, over: ctx.Done(), metrics: m, by: map[string]int{}}
}

// Watch implements bundlepb.TrustBundleServer.
func (b *bundles) Watch(_ *bundlepb.WatchRequest, stream grpc.ServerStreamingServer[bundlepb.Bundle]) error {
	from := address(stream.Context())
	if !b.enter(from) {
		return status.Error(codes.ResourceExhausted, "too many watch already")
	}
	defer b.leave(from)
	var sent *ca.Authority
	for {
		changed := b.source.Changed()
		if a := b.source.Authority(); sent == nil || !slices.EqualFunc(a.Roots(), sent.Roots(), (*x509.Certificate).Equal) {
			if err := stream.Send(message(a)); err != nil {
				return err
			}
			sent = a
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-b.over:
			return status.Error(codes.Unavailable, "this CA ends; ask another")
		}
	}
}

func message(a *ca.Authority) *bundlepb.Bundle {
	m := &bundlepb.Bundle{TrustDomain: a.TrustDomain().Name()}
	for _, r := range a.Roots() {
		m.Roots = append(m.Roots, r.Raw)
	}
	return m
}

func (b *bundles) enter(from string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.count >= maxWatches || b.by[from] >= maxWatchesOfAddress {
		b.metrics.streamsRefused.Inc()
		return false
	}
	b.count++
	b.by[from]++
	b.metrics.streams.Set(float64(b.count))
	return true
}

func (b *bundles) leave(from string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.count--
	if b.by[from]--; b.by[from] == 0 {
		delete(b.by, from)
	}
	b.metrics.streams.Set(float64(b.count))
}
