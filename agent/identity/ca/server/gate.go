package server

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/culvert-mesh/culvert/agent/identity/ca/wire"
	"github.com/culvert-mesh/culvert/agent/identity/ca/wire/bundlepb"
)

const (
	maxRequests = 4096 // of all addresses at once
	// An agent asks for 16 certificates at once. A request of tiny frames takes half a MB of memory until it has ended.
	maxRequestsOfAddress = 64
)

// gate decides on a request by its headers. gRPC reads a whole message before it calls any handler, so whoever has no
// business here is turned away before, and nobody takes forever to send one.
type gate struct {
	bundles  *bundles
	requests *places
	metrics  *metrics
}

func newGate(b *bundles, m *metrics) *gate {
	return &gate{bundles: b, requests: newPlaces(maxRequests, maxRequestsOfAddress), metrics: m}
}

// admit is a tap.ServerInHandle. The context that it gets ends with the request.
func (g *gate) admit(ctx context.Context, info *tap.Info) (context.Context, error) {
	if info.FullMethodName == bundlepb.TrustBundle_Watch_FullMethodName {
		return g.admitWatch(ctx)
	}
	if len(info.Header.Get(wire.AuthorizationKey)) == 0 {
		g.metrics.refused.WithLabelValues(string(unauthenticated)).Inc()
		return nil, status.Error(codes.Unauthenticated, "no authorization header")
	}
	from := address(ctx)
	if !g.requests.enter(from) {
		g.metrics.refused.WithLabelValues(string(limited)).Inc()
		return nil, status.Error(codes.ResourceExhausted, "too many requests of this address at once")
	}
	context.AfterFunc(ctx, func() { g.requests.leave(from) })
	timed, cancel := context.WithTimeout(ctx, requestTimeout)
	context.AfterFunc(ctx, cancel)
	return timed, nil
}

// admitWatch bounds the time in which the request is to be read, and not that of the answer.
func (g *gate) admitWatch(ctx context.Context) (context.Context, error) {
	from := address(ctx)
	if err := g.bundles.enter(from); err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { g.bundles.leave(from) })
	timed, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(requestTimeout, cancel)
	context.AfterFunc(ctx, func() { late.Stop() })
	return context.WithValue(timed, lateKey{}, late), nil
}

type lateKey struct{}

// read says that the request of a stream was read in time.
func read(ctx context.Context) {
	if late, ok := ctx.Value(lateKey{}).(*time.Timer); ok {
		late.Stop()
	}
}
