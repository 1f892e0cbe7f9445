package istio

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/agent/identity/ca/wire/bundlepb"
)

const (
	minStreamWait = time.Second
	maxStreamWait = 30 * time.Second
	// A CA that streams no roots, as istiod, is asked again because another may have taken its place.
	noStreamWait = 10 * time.Minute

	maxStreamed      = 32
	maxStreamedBytes = 16 << 10 // of one root
)

// errRefused marks a bundle that is not believed.
var errRefused = errors.New("roots refused")

// watchFunc calls got with the bundle of the CA and with each that takes its place. It returns with the error of got,
// or when the stream ends.
type watchFunc func(ctx context.Context, got func(*bundlepb.Bundle) error) error

// watchOn streams over a connection. The token does not go along: it is for those who decide on SVIDs.
func watchOn(conn grpc.ClientConnInterface) watchFunc {
	return func(ctx context.Context, got func(*bundlepb.Bundle) error) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := bundlepb.NewTrustBundleClient(conn).Watch(ctx, &bundlepb.WatchRequest{})
		if err != nil {
			return err
		}
		for {
			b, err := stream.Recv()
			if err != nil {
				return err
			}
			if err := got(b); err != nil {
				return err
			}
		}
	}
}

// follow keeps up with what the CA streams until ctx ends.
func (r *roots) follow(ctx context.Context, watch watchFunc) {
	wait := minStreamWait
	for r.wait(ctx) == nil {
		began := time.Now()
		err := watch(ctx, r.take)
		was := r.lost()
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > maxStreamWait {
			wait = minStreamWait
		}
		next := jittered(wait)
		switch {
		case status.Code(err) == codes.Unimplemented:
			next = jittered(noStreamWait)
			r.log.Debug("the CA streams no roots; those in the file count", "file", r.file, "asked_again_in", next)
		case errors.Is(err, errRefused):
			r.log.Warn("roots that the CA streams are refused", "retry_in", next, "error", err)
		case was:
			r.log.Info("stream of the CA's roots lost; going on with those known", "retry_in", next, "error", err)
		default:
			r.log.Debug("no stream of the CA's roots", "retry_in", next, "error", err)
		}
		wait = min(2*wait, maxStreamWait)
		select {
		case <-time.After(next):
		case <-ctx.Done():
		}
	}
}

// take believes a bundle, or says why not.
func (r *roots) take(b *bundlepb.Bundle) error {
	certs, err := parseBundle(b, r.domain)
	if err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	if r.stream(certs) {
		r.log.Info("roots of the CA streamed", "count", len(certs), "first", certs[0].Subject.String(), "known", len(r.current()))
	}
	return nil
}

// parseBundle takes all or nothing.
func parseBundle(b *bundlepb.Bundle, td spiffeid.TrustDomain) ([]*x509.Certificate, error) {
	switch n := len(b.GetRoots()); {
	case b.GetTrustDomain() != td.Name():
		return nil, fmt.Errorf("of trust domain %.255q, want %q", b.GetTrustDomain(), td.Name())
	case n == 0 || n > maxStreamed:
		return nil, fmt.Errorf("%d roots, want 1 to %d", n, maxStreamed)
	}
	certs := make([]*x509.Certificate, 0, len(b.GetRoots()))
	for i, der := range b.GetRoots() {
		c, err := parseRoot(der)
		if err != nil {
			return nil, fmt.Errorf("root %d: %w", i+1, err)
		}
		certs = append(certs, c)
	}
	return certs, nil
}

func parseRoot(der []byte) (*x509.Certificate, error) {
	if len(der) > maxStreamedBytes {
		return nil, fmt.Errorf("%d bytes, want at most %d", len(der), maxStreamedBytes)
	}
	c, err := x509.ParseCertificate(der)
	switch {
	case err != nil:
		return nil, err
	case !c.BasicConstraintsValid || !c.IsCA:
		return nil, errors.New("is no CA")
	case !bytes.Equal(c.RawIssuer, c.RawSubject):
		return nil, errors.New("is signed by another")
	}
	if err := c.CheckSignatureFrom(c); err != nil { // its key usage is looked at as well
		return nil, fmt.Errorf("is not signed by itself: %w", err)
	}
	return c, nil
}

// jittered spreads agents that lost the same CA.
func jittered(d time.Duration) time.Duration { return d/2 + rand.N(d) }
