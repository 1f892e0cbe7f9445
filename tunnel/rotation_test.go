package tunnel

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/tunnel/control"
	"github.com/culvert-mesh/culvert/tunnel/hbone"
)

const (
	rotationConnections = 10000
	rotationPause       = 50 * time.Millisecond
)

// TestRotationUnderLoad replaces leaf, intermediate and root again and again, with overlapping bundles, while new TLS
// connections and new streams are made without end. None may fail, and a connection that is open from before the first
// rotation until after the last must not notice.
func TestRotationUnderLoad(t *testing.T) {
	ca := newAuthority(t, "cluster.local").intermediate(t)
	app := application(t, "127.77.2.1")
	client, server := newNode(t, ca), newNode(t, ca)
	out := wire(t, ca, ca, client, server, app, "server", later())
	server.start()
	client.start()
	open, err := net.Dial("tcp4", out)
	must(t, err)
	defer func() { _ = open.Close() }()
	pingPong(t, open)

	load := &load{t: t, client: client, app: app, out: out, key: poolKey{
		workload: 1, source: spiffeid.RequireFromString(ca.id("client")), destination: spiffeid.RequireFromString(ca.id("server")),
		address: netip.MustParseAddrPort("127.77.2.1:15008"), sourceIP: netip.MustParseAddr("127.77.1.1"),
	}}
	rotation := &rotation{t: t, nodes: map[*node]string{client: ca.id("client"), server: ca.id("server")}, issuer: ca}
	stop := load.start()
	for load.handshakes.Load() < rotationConnections && !t.Failed() {
		for range 2 {
			rotation.leaf()
		}
		rotation.intermediate()
		rotation.root()
		pingPong(t, open)
	}
	stop()
	pingPong(t, open)
	t.Logf("%d new TLS connections with one stream each, %d streams through the pool (%d handshakes, %d streams declined and carried by another connection), "+
		"%d failed; %d leaves, %d intermediates, %d roots replaced on each side", load.handshakes.Load(), load.streams.Load(),
		strings.Count(client.logs.String(), "TLS handshake complete")-int(load.handshakes.Load()), strings.Count(server.logs.String(), "CONNECT declined"),
		load.failed.Load(), rotation.leaves, rotation.intermediates, rotation.roots)
	if load.failed.Load() > 0 || load.streams.Load() == 0 || rotation.roots < 2 {
		t.Error("want no failure, and something to fail")
	}
}

// load makes connections without end.
type load struct {
	t        *testing.T
	client   *node
	app, out string
	key      poolKey

	handshakes, streams, failed atomic.Uint64
}

func (l *load) start() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	run := func(count *atomic.Uint64, once func() error) {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := once(); err != nil {
					l.failed.Add(1)
					l.t.Errorf("after %d connections: %v", count.Load(), err)
					return
				}
				count.Add(1)
			}
		})
	}
	for range 4 {
		run(&l.handshakes, l.newConnection)
	}
	for range 2 {
		run(&l.streams, l.newStream)
	}
	return func() { cancel(); wg.Wait() }
}

// newConnection makes a TLS connection as the pool does, and a stream of it that reaches the application.
func (l *load) newConnection() error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, _, err := l.client.tunnel.dialPool(ctx, l.key)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	s, err := conn.Connect(ctx, hbone.Request{Authority: l.app})
	if err != nil {
		return fmt.Errorf("stream of a new connection: %w", err)
	}
	s.Cancel()
	return nil
}

func (l *load) newStream() error {
	got, err := call(l.out, "hello")
	if err == nil && got != "hello" {
		err = fmt.Errorf("got %q", got)
	}
	return err
}

// rotation replaces what nodes have. Each step ends when all nodes have taken it.
type rotation struct {
	t      *testing.T
	nodes  map[*node]string // and the identity on each
	issuer *authority

	leaves, intermediates, roots int
}

// leaf gives each node a new SVID, and waits until the old one's key is gone: no handshake uses it then.
func (r *rotation) leaf() {
	r.t.Helper()
	r.leaves++
	for n, name := range r.nodes {
		id := spiffeid.RequireFromString(name)
		old, err := n.tunnel.ids.usable(id)
		must(r.t, err)
		n.give(r.issuer.svid(r.t, name, later()))
		n.eventually("the old key wiped", func() bool {
			old.key.mu.RLock()
			defer old.key.mu.RUnlock()
			return old.key.signer == nil
		})
	}
	time.Sleep(rotationPause)
}

func (r *rotation) intermediate() {
	r.t.Helper()
	r.intermediates++
	above := &authority{domain: r.issuer.domain, root: r.issuer.root, issuer: r.issuer.root, key: r.issuer.rootKey, rootKey: r.issuer.rootKey}
	r.issuer = above.intermediate(r.t)
	r.leaf()
}

// root does as an authority does: the new root is announced, then used, and the old one is dropped when no SVID below
// it is left.
func (r *rotation) root() {
	r.t.Helper()
	r.roots++
	old, next := r.issuer, newAuthority(r.t, r.issuer.domain)
	r.bundle(bundleOf(next.domain, old, next), 2)
	r.issuer = next.intermediate(r.t)
	r.leaf()
	r.bundle(bundleOf(next.domain, next, old), 2)
	r.bundle(bundleOf(next.domain, next), 1)
}

func (r *rotation) bundle(m *control.FromAgent, roots int) {
	r.t.Helper()
	domain := spiffeid.RequireTrustDomainFromString(m.GetBundle().GetTrustDomain())
	for n := range r.nodes {
		n.push(m)
		n.eventually("the bundle", func() bool {
			b, err := n.tunnel.ids.GetX509BundleForTrustDomain(domain)
			return err == nil && len(b.X509Authorities()) == roots
		})
	}
	time.Sleep(rotationPause)
}
