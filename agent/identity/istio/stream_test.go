package istio

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/ca/catest"
	"github.com/culvert-mesh/culvert/agent/identity/ca/wire/bundlepb"
)

// streamer streams a bundle and each that takes its place.
type streamer struct {
	bundlepb.UnimplementedTrustBundleServer
	mu      sync.Mutex
	bundle  *bundlepb.Bundle
	changed chan struct{}
	asked   metadata.MD // what came with the last call
}

func bundleOf(td string, roots ...*catest.CA) *bundlepb.Bundle {
	b := &bundlepb.Bundle{TrustDomain: td}
	for _, r := range roots {
		b.Roots = append(b.Roots, r.Cert.Raw)
	}
	return b
}

func newStreamer(b *bundlepb.Bundle) *streamer {
	return &streamer{bundle: b, changed: make(chan struct{})}
}

func (s *streamer) set(b *bundlepb.Bundle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bundle = b
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *streamer) Watch(_ *bundlepb.WatchRequest, out grpc.ServerStreamingServer[bundlepb.Bundle]) error {
	for {
		s.mu.Lock()
		b, changed := s.bundle, s.changed
		s.asked, _ = metadata.FromIncomingContext(out.Context())
		s.mu.Unlock()
		if err := out.Send(b); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-out.Context().Done():
			return out.Context().Err()
		}
	}
}

// knows waits until the client trusts exactly these.
func knows(t *testing.T, c *Client, roots ...*catest.CA) {
	t.Helper()
	var have []string
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		b := c.Bundles()[0]
		all := len(b.X509Authorities()) == len(roots)
		for _, r := range roots {
			all = all && b.HasX509Authority(r.Cert)
		}
		if all {
			return
		}
		have = nil
		for _, r := range b.X509Authorities() {
			have = append(have, r.Subject.CommonName)
		}
	}
	t.Fatalf("trusts %v, want %d others", have, len(roots))
}

// The whole rotation of a root while the file stays behind: announced, switched to, and the old one dropped.
func TestRotationByStreamAlone(t *testing.T) {
	f := startCA(t, func(f *fakeCA) { f.stream = newStreamer(bundleOf("cluster.local", f.root)) })
	old, next := f.root, catest.Root(t, "next")
	c := newClient(t, f.address, mount(t, old), nil)
	knows(t, c, old)

	changed := c.Changed()
	f.stream.set(bundleOf("cluster.local", old, next))
	<-changed
	knows(t, c, old, next)
	f.stream.mu.Lock()
	asked := f.stream.asked
	f.stream.mu.Unlock()
	if len(asked.Get("authorization")) > 0 || len(asked.Get("clusterid")) > 0 {
		t.Errorf("the stream was asked for with %v", asked)
	}

	f.stop()
	f.root = next // signs the CA's own certificate as well
	f.serve(t, f.address)
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_, err := c.Issue(t.Context(), identity.Workload{ID: cart()})
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	f.stream.set(bundleOf("cluster.local", next))
	time.Sleep(2 * lookInterval)
	knows(t, c, old, next) // old is in the file, which nobody has changed
}

func TestStreamedRootsOutliveTheStreamUntilTheFileChanges(t *testing.T) {
	next, third, fourth := catest.Root(t, "next"), catest.Root(t, "third"), catest.Root(t, "fourth")
	f := startCA(t, func(f *fakeCA) { f.stream = newStreamer(bundleOf("cluster.local", next)) })
	m := mount(t, f.root)
	c := newClient(t, f.address, m, nil)
	knows(t, c, f.root, next)

	write(t, m.roots, catest.CertPEM(f.root, third))
	knows(t, c, f.root, third, next) // the stream is up
	f.stop()
	time.Sleep(2 * lookInterval)
	knows(t, c, f.root, third, next)
	write(t, m.roots, catest.CertPEM(f.root, fourth))
	knows(t, c, f.root, fourth)
}

func TestRefusedBundleChangesNothing(t *testing.T) {
	next := catest.Root(t, "next")
	f := startCA(t, func(f *fakeCA) { f.stream = newStreamer(bundleOf("elsewhere", next)) })
	c := newClient(t, f.address, mount(t, f.root), nil)
	if _, err := c.Issue(t.Context(), identity.Workload{ID: cart()}); err != nil {
		t.Fatal(err)
	}
	knows(t, c, f.root)
	f.stream.set(bundleOf("cluster.local", next))
	knows(t, c, f.root, next) // asked again
}

func TestBundlesThatAreNotBelieved(t *testing.T) {
	root := catest.Root(t, "root")
	middle := root.Intermediate(t, "middle")
	namesake := root.Intermediate(t, "root") // signed by root, under the same name and with another key
	leaf := &catest.CA{Cert: root.Leaf(t, &catest.Key(t).PublicKey)}
	cannotSign := catest.Root(t, "cannot sign", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature })
	noCA := catest.Root(t, "no CA", func(c *x509.Certificate) { c.IsCA = false })
	large := catest.Root(t, "large", func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3, 4}, Value: make([]byte, maxStreamedBytes)}}
	})
	many := make([]*catest.CA, maxStreamed+1)
	for i := range many {
		many[i] = root
	}
	tests := []struct {
		name   string
		bundle *bundlepb.Bundle
		want   string // empty: believed
	}{
		{"root", bundleOf("cluster.local", root), ""},
		{"as many as may be", bundleOf("cluster.local", many[1:]...), ""},
		{"of another trust domain", bundleOf("elsewhere", root), `of trust domain "elsewhere", want "cluster.local"`},
		{"of a trust domain with a long name", bundleOf(strings.Repeat("x", 1<<16), root), "x\", want"},
		{"of none", bundleOf("", root), "of trust domain"},
		{"none", bundleOf("cluster.local"), "0 roots"},
		{"empty", nil, "of trust domain"},
		{"too many", bundleOf("cluster.local", many...), "33 roots, want 1 to 32"},
		{"too large", bundleOf("cluster.local", large), "bytes, want at most 16384"},
		{"garbage", &bundlepb.Bundle{TrustDomain: "cluster.local", Roots: [][]byte{[]byte("garbage")}}, "root 1"},
		{"two in one", &bundlepb.Bundle{TrustDomain: "cluster.local", Roots: [][]byte{append(root.Cert.Raw[:len(root.Cert.Raw):len(root.Cert.Raw)], root.Cert.Raw...)}}, "trailing data"},
		{"SVID", bundleOf("cluster.local", leaf), "is no CA"},
		{"no CA", bundleOf("cluster.local", noCA), "is no CA"},
		{"intermediate", bundleOf("cluster.local", root, middle), "root 2: is signed by another"},
		{"namesake", bundleOf("cluster.local", namesake), "is not signed by itself"},
		{"cannot sign", bundleOf("cluster.local", cannotSign), "is not signed by itself"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := newRoots("/nonexistent", domain(), slog.New(slog.DiscardHandler))
			err := r.take(test.bundle)
			switch {
			case test.want == "" && err != nil:
				t.Fatal(err)
			case test.want != "" && (!errors.Is(err, errRefused) || !strings.Contains(err.Error(), test.want)):
				t.Fatalf("error %v, want %q in it", err, test.want)
			case len(fmt.Sprint(err)) > 500:
				t.Fatalf("error of %d bytes", len(err.Error()))
			case len(r.current()) > 0 != (test.want == ""):
				t.Fatalf("%d roots known", len(r.current()))
			}
		})
	}
}

// attempts of a follower, and how long each lasts before it ends with an error.
func TestStreamIsAskedForAgain(t *testing.T) {
	away := status.Error(codes.Unavailable, "away")
	type attempt struct {
		lasts time.Duration
		err   error
	}
	tests := []struct {
		name        string
		attempts    []attempt
		least, most time.Duration // the wait after the last attempt
	}{
		{"soon", []attempt{{0, away}}, minStreamWait / 2, 3 * minStreamWait / 2},
		{"later and later", []attempt{{0, away}, {0, away}, {0, away}}, 2 * minStreamWait, 6 * minStreamWait},
		{"but not ever later", make([]attempt, 20), maxStreamWait / 2, 3 * maxStreamWait / 2},
		{"soon after one that lasted", append(make([]attempt, 20), attempt{time.Hour, away}), minStreamWait / 2, 3 * minStreamWait / 2},
		{"not soon after one that did not", append(make([]attempt, 20), attempt{time.Second, away}), maxStreamWait / 2, 3 * maxStreamWait / 2},
		{"rarely if there is none", []attempt{{0, status.Error(codes.Unimplemented, "unknown service")}}, noStreamWait / 2, 3 * noStreamWait / 2},
		{"as ever if it is refused", []attempt{{0, errRefused}}, minStreamWait / 2, 3 * minStreamWait / 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRoots("/nonexistent", domain(), slog.New(slog.DiscardHandler))
				r.stream([]*x509.Certificate{catest.Root(t, "root").Cert})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				n := 0
				var ended time.Time
				r.follow(ctx, func(context.Context, func(*bundlepb.Bundle) error) error {
					if n == len(test.attempts) {
						if took := time.Since(ended); took < test.least || took > test.most {
							t.Errorf("asked again after %s, want %s to %s", took, test.least, test.most)
						}
						cancel()
						return ctx.Err()
					}
					a := test.attempts[n]
					if a.err == nil {
						a.err = away
					}
					n++
					time.Sleep(a.lasts)
					ended = time.Now()
					return a.err
				})
			})
		})
	}
}
