package server

import (
	"context"
	"crypto/x509"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/wire/bundlepb"
)

const (
	maxWatches = 8192 // of all addresses
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

	places *places
}

func newBundles(ctx context.Context, s source, m *metrics) *bundles {
	return &bundles{source: s, over: ctx.Done(), metrics: m, places: newPlaces(maxWatches, maxWatchesOfAddress)}
}

// Watch implements bundlepb.TrustBundleServer.
func (b *bundles) Watch(_ *bundlepb.WatchRequest, stream grpc.ServerStreamingServer[bundlepb.Bundle]) error {
	read(stream.Context())
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

// enter takes a place for a stream, before anything is read for it. leave gives it back.
func (b *bundles) enter(from string) error {
	if !b.places.enter(from) {
		b.metrics.streamsRefused.Inc()
		return status.Error(codes.ResourceExhausted, "too many streams already")
	}
	b.metrics.streams.Inc()
	return nil
}

func (b *bundles) leave(from string) {
	b.places.leave(from)
	b.metrics.streams.Dec()
}
