package kube

import (
	"crypto/x509"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
)

// Mesh is all that was ever published and issued, to be checked against each other. Tests of both packages use it.
type Mesh struct {
	mu      sync.Mutex
	bundles []published
	leaves  []leaf
}

type published struct {
	at    time.Time
	text  string
	roots []*x509.Certificate
}

type leaf struct {
	at    time.Time
	chain []*x509.Certificate
}

// Publish notes the bundle of the moment, PEM.
func (m *Mesh) Publish(t testing.TB, text []byte) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := len(m.bundles); n > 0 && m.bundles[n-1].text == string(text) {
		return
	}
	roots, err := ca.ParseCertificates(text)
	if err != nil {
		t.Error(err)
		return
	}
	m.bundles = append(m.bundles, published{time.Now(), string(text), roots})
}

// Issue notes a leaf that was issued just now.
func (m *Mesh) Issue(chain []*x509.Certificate) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leaves = append(m.leaves, leaf{time.Now(), chain})
}

// Bundles returns how many were published.
func (m *Mesh) Bundles() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.bundles)
}

// Check verifies each leaf against each bundle that anybody may have had while the leaf lived: one that was published,
// up to lag after it was replaced.
func (m *Mesh) Check(t testing.TB, lag time.Duration) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	handshakes, failed := 0, 0
	for i, b := range m.bundles {
		until := time.Now()
		if i+1 < len(m.bundles) {
			until = m.bundles[i+1].at.Add(lag)
		}
		bundle := x509bundle.FromX509Authorities(domain(), b.roots)
		for _, l := range m.leaves {
			from, to := later(b.at, l.at), earliest(until, l.chain[0].NotAfter)
			if !from.Before(to) {
				continue
			}
			for _, at := range []time.Time{from, to.Add(-time.Nanosecond)} {
				handshakes++
				if _, _, err := x509svid.Verify(l.chain, bundle, x509svid.WithTime(at)); err != nil {
					failed++
					t.Errorf("leaf of %s against the bundle of %s (%d of %d) at %s: %v", l.at, b.at, i+1, len(m.bundles), at, err)
				}
			}
		}
		if failed > 10 {
			t.Fatal("and more")
		}
	}
	t.Logf("%d bundles, %d leaves, %d handshakes possible, %d failed", len(m.bundles), len(m.leaves), handshakes, failed)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
