package tunnel

import (
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// TestExpiryWatch plays the life of two SVIDs second by second: one that a workload needs and one that nobody needs.
func TestExpiryWatch(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	needed, useless := spiffeid.RequireFromString(ca.id("needed")), spiffeid.RequireFromString(ca.id("useless"))
	begin := time.Now()
	end := begin.Add(10 * time.Minute).Truncate(time.Second)
	s := identitiesOf(t, "cluster.local", nil, ca.svid(t, needed.String(), end), ca.svid(t, useless.String(), end))
	logs, stats := &syncBuffer{}, new(Stats)
	w := newExpiryWatch(slog.New(slog.NewTextHandler(logs, nil)), stats, func(id spiffeid.ID) bool { return id == needed })
	look := func(at time.Time) {
		for _, v := range w.look(at, s.held()) {
			s.drop(v.id, v)
		}
	}
	count := func(text string, want int) {
		t.Helper()
		if n := strings.Count(logs.String(), text); n != want {
			t.Errorf("%d lines with %q, want %d:\n%s", n, text, want, logs.String())
		}
	}
	for at := begin; at.Before(begin.Add(7 * time.Minute)); at = at.Add(time.Second) {
		look(at)
	}
	count("level=", 0)
	for at := begin.Add(8 * time.Minute); at.Before(end); at = at.Add(time.Second) {
		look(at)
	}
	count(`level=WARN msg="SVID not replaced`, 1)
	count("level=", 1)

	held := s.svids[needed]
	held.refused.Add(3)
	for at := end.Add(time.Second); at.Before(end.Add(3*time.Minute + 3*time.Second)); at = at.Add(time.Second) {
		look(at)
		held.refused.Add(1)
		if n := stats.ExpiredSVIDs.Load(); n != 1 {
			t.Fatalf("%d expired, want 1", n)
		}
	}
	count(`level=ERROR msg="SVID expired`, 1)
	count("refused=3\n", 1)
	count(`level=ERROR msg="SVID still expired`, 3)
	count("refused=60\n", 3)
	if _, err := s.usable(useless); len(s.held()) != 1 {
		t.Errorf("%v, %d held: what nobody needs was kept", err, len(s.held()))
	}

	must(t, s.setSVID(ca.svid(t, needed.String(), end.Add(time.Hour)).GetSvid()))
	look(end.Add(5 * time.Minute))
	look(end.Add(6 * time.Minute))
	count("SVID replaced: new mTLS connections again", 1)
	if stats.ExpiredSVIDs.Load() != 0 || stats.SVIDs.Load() != 1 || stats.RefusedExpired.Load() != held.refused.Load() {
		t.Errorf("%d expired, %d held, %d refused of %d", stats.ExpiredSVIDs.Load(), stats.SVIDs.Load(), stats.RefusedExpired.Load(), held.refused.Load())
	}
	s.drop(needed, nil)
	look(end.Add(7 * time.Minute))
	if len(w.late)+len(w.outages)+len(w.counted) != 0 {
		t.Error("something is kept of an identity that has gone")
	}
}

// TestLifeBeginsWithReceipt: an authority's tolerance for slow clocks is not life that is over.
func TestLifeBeginsWithReceipt(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	now := time.Now()
	v, err := parseSVID(spiffeid.RequireFromString(ca.id("x")), ca.svidFrom(t, ca.id("x"), now.Add(-5*time.Minute), now.Add(20*time.Second)).GetSvid())
	must(t, err)
	if v.late(now.Add(10*time.Second)) || !v.late(now.Add(18*time.Second)) {
		t.Error("want an SVID of twenty seconds to be late after sixteen")
	}
}

// TestExpiryGuard: when the own SVID ends, what is open goes on and nothing new comes to be, in either direction and
// on the same node, until there is another SVID.
func TestExpiryGuard(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	type set struct {
		c, s    *node
		out     string
		expires *node // whose SVID ends
		renew   string
	}
	tests := map[string]func(t *testing.T, app string, ends time.Time) set{
		"outbound": func(t *testing.T, app string, ends time.Time) set {
			c, s := newNode(t, ca), newNode(t, ca)
			return set{c, s, wire(t, ca, ca, c, s, app, "server", ends), c, "client"}
		},
		"inbound": func(t *testing.T, app string, ends time.Time) set {
			c, s := newNode(t, ca), newNode(t, ca)
			out := wire(t, ca, ca, c, s, app, "server", later())
			for i, m := range s.messages {
				if m.GetSvid() != nil {
					s.messages[i] = ca.svid(t, ca.id("server"), ends)
				}
			}
			return set{c, s, out, s, "server"}
		},
		"same node": func(t *testing.T, app string, ends time.Time) set {
			c := newNode(t, ca)
			return set{c, newNode(t, ca), same(t, ca, c, app, "server", ends), c, "server"}
		},
	}
	for name, prepare := range tests {
		t.Run(name, func(t *testing.T) {
			app := application(t, "127.77.2.1")
			ends := time.Now().Add(4 * time.Second).Truncate(time.Second)
			x := prepare(t, app, ends)
			x.s.start()
			x.c.start()
			c, err := net.Dial("tcp4", x.out)
			must(t, err)
			defer func() { _ = c.Close() }()
			pingPong(t, c)
			x.expires.await("SVID expired: no new mTLS connections")
			x.expires.tunnel.ids.mu.RLock()
			still := len(x.expires.tunnel.ids.svids) > 0
			x.expires.tunnel.ids.mu.RUnlock()
			if !still {
				t.Error("the SVID was dropped although a workload needs it")
			}
			wantReset(t, x.out)
			pingPong(t, c)
			x.expires.push(ca.svid(t, ca.id(x.renew), later()))
			x.expires.await("SVID replaced: new mTLS connections again")
			wantEcho(t, x.out)
			pingPong(t, c)
			if n := strings.Count(x.expires.logs.String(), "SVID expired: no new"); n != 1 {
				t.Errorf("%d lines, want one", n)
			}
			if n := x.expires.tunnel.Stats.RefusedExpired.Load(); n == 0 {
				t.Error("the refused connection was not counted")
			}
		})
	}
}

// TestPeerExpires: the pool does not use a connection after the peer's certificate has ended, and the next handshake
// sees the new one.
func TestPeerExpires(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	app := application(t, "127.77.2.1")
	client, server := newNode(t, ca), newNode(t, ca)
	out := wire(t, ca, ca, client, server, app, "server", later())
	ends := time.Now().Add(4 * time.Second).Truncate(time.Second)
	for i, m := range server.messages {
		if m.GetSvid() != nil {
			server.messages[i] = ca.svid(t, ca.id("server"), ends)
		}
	}
	server.start()
	client.start()
	c, err := net.Dial("tcp4", out)
	must(t, err)
	defer func() { _ = c.Close() }()
	pingPong(t, c)
	server.give(ca.svid(t, ca.id("server"), later()))
	for time.Now().Before(ends.Add(100 * time.Millisecond)) {
		wantEcho(t, out) // over the end of the first one
		time.Sleep(10 * time.Millisecond)
	}
	wantEcho(t, out)
	pingPong(t, c)
	if n := strings.Count(client.logs.String(), "TLS handshake complete"); n != 2 {
		t.Errorf("%d handshakes, want 2", n)
	}
}

// TestRootDropped: open streams go on, new ones need a handshake that the remaining roots support, on both sides.
func TestRootDropped(t *testing.T) {
	first, second := newAuthority(t, "cluster.local"), newAuthority(t, "cluster.local")
	both := bundleOf("cluster.local", first, second)
	for _, where := range []string{"client", "server"} {
		t.Run(where, func(t *testing.T) {
			app := application(t, "127.77.2.1")
			client, server := newNode(t, first), newNode(t, first)
			out := wire(t, first, first, client, server, app, "server", later())
			client.send(both)
			server.send(both)
			server.start()
			client.start()
			c, err := net.Dial("tcp4", out)
			must(t, err)
			defer func() { _ = c.Close() }()
			pingPong(t, c)
			client.give(second.svid(t, first.id("client"), later()))
			server.give(second.svid(t, first.id("server"), later()))
			wantEcho(t, out)
			narrows, line := client, "HBONE connections take no more streams"
			if where == "server" {
				narrows, line = server, "inbound HBONE connection takes no more streams"
			}
			narrows.push(bundleOf("cluster.local", second))
			narrows.await(line)
			for range 5 {
				wantEcho(t, out)
			}
			pingPong(t, c)
			if n := strings.Count(client.logs.String(), "TLS handshake complete"); n != 2 {
				t.Errorf("%d handshakes, want 2", n)
			}
			narrows.push(bundleOf("cluster.local", first)) // nobody's any more
			narrows.eventually("another end", func() bool { return strings.Count(narrows.logs.String(), line) == 2 })
			wantReset(t, out)
			must(t, c.(*net.TCPConn).CloseWrite())
			if rest, err := io.ReadAll(c); err != nil || len(rest) != 0 {
				t.Errorf("the open connection ended with %q, %v", rest, err)
			}
		})
	}
}

// TestDeclinedStreamIsCarriedByAnotherConnection: the server may drop a root before the client's pool has heard of it.
func TestDeclinedStreamIsCarriedByAnotherConnection(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	app := application(t, "127.77.2.1")
	client, server := newNode(t, ca), newNode(t, ca)
	out := wire(t, ca, ca, client, server, app, "server", later())
	server.start()
	client.start()
	wantEcho(t, out)
	// As after a change of which the connection's own goroutine has not heard yet.
	server.tunnel.ids.mu.Lock()
	delete(server.tunnel.ids.bundles, spiffeid.RequireTrustDomainFromString("cluster.local"))
	server.tunnel.ids.trust.Add(1)
	server.tunnel.ids.mu.Unlock()
	wantReset(t, out) // declined; the new handshake fails
	server.await("CONNECT declined")
	server.push(ca.bundle())
	server.eventually("an echo", func() bool { got, err := call(out, "hello"); return err == nil && got == "hello" })
	if n := strings.Count(server.logs.String(), "CONNECT declined"); n != 1 {
		t.Errorf("%d streams on the connection that takes no more, want 1", n)
	}
}
