package spiffe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// self is this agent's own identity, which the Workload API gives to whoever connects. Other than go-spiffe's X509Source
// it can be made before there is one; it uses that module's stubs because package workloadapi brings JWTs along.
type self struct {
	log    *slog.Logger
	pace   pace
	conn   *grpc.ClientConn
	client workload.SpiffeWorkloadAPIClient
	ready  chan struct{} // closed as soon as there is an SVID

	mu      sync.Mutex
	svid    *x509svid.SVID
	bundle  *x509bundle.Bundle
	problem string // as logged last
}

func newSelf(o Options, p pace) (*self, error) {
	conn, err := connect(o.WorkloadAPI, nil, p)
	if err != nil {
		return nil, err
	}
	return &self{log: o.Logger, pace: p, conn: conn, client: workload.NewSpiffeWorkloadAPIClient(conn), ready: make(chan struct{})}, nil
}

// run keeps the identity until ctx ends. What is known stays while the Workload API is away.
func (s *self) run(ctx context.Context) {
	for {
		err := s.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		s.failed(err)
		sleep(ctx, s.pace.retry+rand.N(s.pace.maxRetry))
	}
}

func (s *self) follow(ctx context.Context) error {
	// The standard wants this header, which who is tricked into forwarding a request does not send.
	ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
	stream, err := s.client.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := s.take(m); err != nil {
			return err
		}
	}
}

// take takes the first SVID, which is by the standard the one to use.
func (s *self) take(m *workload.X509SVIDResponse) error {
	if len(m.GetSvids()) == 0 {
		return errors.New("no SVID")
	}
	first := m.GetSvids()[0]
	defer clear(first.GetX509SvidKey())
	svid, err := x509svid.ParseRaw(first.GetX509Svid(), first.GetX509SvidKey())
	if err != nil {
		return err
	}
	bundle, err := x509bundle.ParseRaw(svid.ID.TrustDomain(), first.GetBundle())
	if err != nil {
		return fmt.Errorf("roots of %s: %w", svid.ID.TrustDomain(), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.svid == nil {
		s.log.Info("own SVID received from the Workload API", "identity", svid.ID.String())
		close(s.ready)
	}
	s.svid, s.bundle, s.problem = svid, bundle, ""
	return nil
}

func (s *self) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.problem == err.Error() {
		return
	}
	s.problem = err.Error()
	s.log.Warn("own SVID not received from the Workload API; trying again", "known", s.svid != nil, "error", err)
}

// wait returns as soon as there is an SVID.
func (s *self) wait(ctx context.Context) error {
	select {
	case <-s.ready:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("no SVID of our own from the Workload API yet: %w", ctx.Err())
	}
}

// GetX509SVID implements x509svid.Source.
func (s *self) GetX509SVID() (*x509svid.SVID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.svid == nil {
		return nil, errors.New("no SVID of our own from the Workload API yet")
	}
	return s.svid, nil
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (s *self) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bundle == nil {
		return nil, errors.New("no roots from the Workload API yet")
	}
	return s.bundle.GetX509BundleForTrustDomain(td)
}
