package istio

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
)

const (
	// A mounted ConfigMap is replaced by a rename above the file, once in a minute or so: looking is simpler than
	// being told.
	lookInterval  = time.Second
	maxRootsBytes = 1 << 20
)

// roots are those in a file, which may be missing at first, and those that the CA streams. What was read once stays
// until the file holds something better. What was streamed stays as well when the stream is lost, because the file
// may be behind it; once the file changes it has caught up, and counts alone.
type roots struct {
	file   string
	domain spiffeid.TrustDomain
	log    *slog.Logger

	text    []byte // as read last; only watch uses it
	problem string // as logged last

	mu        sync.Mutex
	mounted   []*x509.Certificate
	streamed  []*x509.Certificate
	streaming bool
	known     []*x509.Certificate // both, each once
	changed   chan struct{}       // closed and replaced at each change of known
}

func newRoots(file string, td spiffeid.TrustDomain, log *slog.Logger) *roots {
	r := &roots{file: file, domain: td, log: log, changed: make(chan struct{})}
	r.read()
	return r
}

// watch reads the file again and again until ctx ends.
func (r *roots) watch(ctx context.Context) {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			r.read()
		}
	}
}

func (r *roots) read() {
	text, err := readFile(r.file, maxRootsBytes)
	if err == nil && bytes.Equal(text, r.text) {
		r.problem = ""
		return
	}
	var certs []*x509.Certificate
	if err == nil {
		certs, err = ca.ParseCertificates(text)
	}
	if err != nil {
		if r.problem != err.Error() {
			r.problem = err.Error()
			r.log.Warn("roots of the CA not read; waiting for the file, going on with the roots known",
				"file", r.file, "known", len(r.current()), "error", err)
		}
		return
	}
	r.text, r.problem = text, ""
	r.log.Info("roots of the CA read", "file", r.file, "count", len(certs), "first", certs[0].Subject.String(),
		"expires", certs[0].NotAfter)
	r.update(func() {
		r.mounted = certs
		if !r.streaming {
			r.streamed = nil
		}
	})
}

// stream takes what the CA streams in place of what it streamed before.
func (r *roots) stream(certs []*x509.Certificate) (changed bool) {
	return r.update(func() { r.streamed, r.streaming = certs, true })
}

// lost notes that the stream has ended, and reports whether there was one.
func (r *roots) lost() (was bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	was, r.streaming = r.streaming, false
	return was
}

// update applies f, which holds the lock, and tells whether the roots are others than before.
func (r *roots) update(f func()) (changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	known := slices.Clone(r.mounted)
	for _, c := range r.streamed {
		if !slices.ContainsFunc(known, c.Equal) {
			known = append(known, c)
		}
	}
	if slices.EqualFunc(known, r.known, (*x509.Certificate).Equal) {
		return false
	}
	r.known = known
	close(r.changed)
	r.changed = make(chan struct{})
	return true
}

func (r *roots) current() []*x509.Certificate {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known
}

func (r *roots) next() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

func (r *roots) bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(r.domain, r.current())
}

func (r *roots) pool() *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range r.current() {
		p.AddCert(c)
	}
	return p
}

// wait returns as soon as there are roots.
func (r *roots) wait(ctx context.Context) error {
	for {
		changed := r.next()
		if len(r.current()) > 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("roots of the CA are not in %s yet: %w", r.file, ctx.Err())
		}
	}
}
