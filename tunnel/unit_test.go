package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/tunnel/control"
)

func TestForwardedFor(t *testing.T) {
	peer := netip.MustParseAddr("10.0.0.1")
	tests := map[string]string{
		"":                                   "10.0.0.1:0",
		`for="10.0.0.1:4711"`:                "10.0.0.1:4711",
		`For="10.0.0.1:4711";host=x`:         "10.0.0.1:4711",
		`host=x; for=10.0.0.1:1`:             "10.0.0.1:1",
		`for="10.0.0.2:4711"`:                "10.0.0.1:0", // somebody else's
		`for="[::ffff:10.0.0.1]:5"`:          "10.0.0.1:5",
		`for=unknown`:                        "10.0.0.1:0",
		`for="10.0.0.2:1";for="10.0.0.1:77"`: "10.0.0.1:77",
	}
	for header, want := range tests {
		if got := forwardedFor(header, peer).String(); got != want {
			t.Errorf("%q: got %s, want %s", header, got, want)
		}
	}
}

func TestParseModeFailsClosed(t *testing.T) {
	for _, m := range []*control.PortMode{nil, {}, {Mode: 77}} {
		if got := parseMode(m).mode; got != control.Mode_MODE_STRICT {
			t.Errorf("%v: got %s, want STRICT", m, got)
		}
	}
}

func TestParseRouteFailsClosed(t *testing.T) {
	address := control.FromAddr(netip.MustParseAddr("10.0.0.1"))
	tests := map[string]*control.Endpoint{
		"unspecified":   {Address: address, Port: 80},
		"unknown":       {Address: address, Port: 80, Action: 99},
		"no identity":   {Address: address, Port: 80, Action: control.Action_ACTION_HBONE},
		"no address":    {Port: 80, Action: control.Action_ACTION_DIRECT},
		"port 0":        {Address: address, Action: control.Action_ACTION_DIRECT},
		"port too high": {Address: address, Port: 70000, Action: control.Action_ACTION_DIRECT},
	}
	for name, e := range tests {
		if got := parseRoute(&control.Route{Endpoints: []*control.Endpoint{e}}).pick().action; got != control.Action_ACTION_REFUSE {
			t.Errorf("%s: got %s, want REFUSE", name, got)
		}
	}
	if got := new(route).pick().action; got != control.Action_ACTION_REFUSE {
		t.Errorf("no endpoints: got %s, want REFUSE", got)
	}
}

func TestRoutes(t *testing.T) {
	asked, forgotten, full := 0, 0, false
	r := newRoutes(func(_ netip.AddrPort, forget bool) bool {
		if forget {
			forgotten++
		} else {
			asked++
		}
		return !full
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	to := netip.MustParseAddrPort("10.0.0.1:80")
	for range 3 {
		if _, err := r.lookup(ctx, to); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v, want to be canceled", err)
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times, want once", asked)
	}
	want := &route{reason: "first"}
	r.set(to, want)
	r.set(netip.MustParseAddrPort("10.0.0.2:80"), want) // not asked for
	if got, err := r.lookup(ctx, to); err != nil || got != want {
		t.Errorf("got %v, %v; want the answer", got, err)
	}
	for i := range routeMost {
		_, _ = r.lookup(ctx, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 80))
	}
	if len(r.entries) != routeMost || r.recent.Len() != routeMost || forgotten != 1 {
		t.Errorf("%d entries, %d in order, %d forgotten; want %d, %d, 1", len(r.entries), r.recent.Len(), forgotten, routeMost, routeMost)
	}
	r.set(netip.MustParseAddrPort("10.1.0.1:80"), want)
	full = true
	r.reconnected()
	if len(r.entries) != routeMost-1 || r.recent.Len() != routeMost-1 {
		t.Errorf("%d entries, %d in order; want %d without the answer of the agent that is gone", len(r.entries), r.recent.Len(), routeMost-1)
	}
}

func TestReserve(t *testing.T) {
	var asked []uint32
	r := &reserve{ask: func(n uint32) { asked = append(asked, n) }}
	r.reconnected()
	files := func(n int) (out []*os.File) {
		for range n {
			f, err := os.Open(os.DevNull)
			must(t, err)
			out = append(out, f)
		}
		return out
	}
	r.put(files(32))
	for range 17 {
		f, err := r.get(t.Context())
		must(t, err)
		_ = f.Close()
	}
	if len(asked) != 2 || asked[0] != 32 || asked[1] != 32 {
		t.Errorf("asked for %v, want 32 at first and 32 when fewer than 16 were left", asked)
	}
	r.put(files(reserveMost + 1))
	if len(r.free) != reserveMost {
		t.Errorf("%d kept, want %d", len(r.free), reserveMost)
	}
	r.close()
	if _, err := r.get(t.Context()); !errors.Is(err, errWorkloadGone) {
		t.Errorf("got %v, want %v", err, errWorkloadGone)
	}
}

func TestReserveWaiters(t *testing.T) {
	r := &reserve{ask: func(uint32) {}}
	got := make(chan error, 1)
	go func() {
		_, err := r.get(t.Context())
		got <- err
	}()
	for r.waiting() == 0 {
		time.Sleep(time.Millisecond)
	}
	r.waiters = append(r.waiters, make([]chan *os.File, reserveWaiters)...)
	if _, err := r.get(t.Context()); !errors.Is(err, errReserveExhausted) {
		t.Errorf("got %v, want %v", err, errReserveExhausted)
	}
	r.waiters = r.waiters[:1]
	r.close()
	if err := <-got; !errors.Is(err, errWorkloadGone) {
		t.Errorf("got %v, want %v", err, errWorkloadGone)
	}
}

func (r *reserve) waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.waiters)
}

func TestDeliveriesAreUnique(t *testing.T) {
	var d deliveries
	key := delivery{workload: 1, port: 80, client: netip.MustParseAddrPort("10.0.0.1:1")}
	if !d.claim(key) || d.claim(key) {
		t.Error("want the first claim to win and the second to lose")
	}
	d.release(key)
	if !d.claim(key) {
		t.Error("want a released one to be free")
	}
}

func TestNoise(t *testing.T) {
	var n noise
	now := time.Unix(100, 0)
	for i := range noisePerSecond + 5 {
		if _, ok := n.allow("kind", now); ok != (i < noisePerSecond) {
			t.Fatalf("line %d: allowed %t", i, ok)
		}
	}
	if suppressed, ok := n.allow("kind", now.Add(time.Second)); !ok || suppressed != 5 {
		t.Errorf("got %d, %t; want 5 suppressed", suppressed, ok)
	}
}

func tcpPair(t testing.TB) (*net.TCPConn, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = l.Close() }()
	a, err := net.Dial("tcp4", l.Addr().String())
	must(t, err)
	b, err := l.Accept()
	must(t, err)
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

func TestSplice(t *testing.T) {
	start := func(ctx context.Context) (a, b *net.TCPConn, done chan error) {
		a, a2 := tcpPair(t)
		b, b2 := tcpPair(t)
		done = make(chan error, 1)
		go func() {
			_, err := splice(ctx, a2, b2)
			done <- err
		}()
		return a, b, done
	}
	t.Run("half close", func(t *testing.T) {
		a, b, done := start(t.Context())
		must(t, a.CloseWrite())
		_, err := io.ReadAll(b)
		must(t, err)
		_, err = io.WriteString(b, "answer after FIN")
		must(t, err)
		must(t, b.CloseWrite())
		got, err := io.ReadAll(a)
		if err != nil || string(got) != "answer after FIN" {
			t.Errorf("got %q, %v", got, err)
		}
		must(t, <-done)
	})
	t.Run("reset", func(t *testing.T) {
		a, b, done := start(t.Context())
		reset(a)
		if _, err := io.ReadAll(b); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("got %v, want a reset", err)
		}
		if err := <-done; !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("got %v, want a reset", err)
		}
	})
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		_, _, done := start(ctx)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want to be canceled", err)
		}
	})
}

func TestSocketIPv6(t *testing.T) {
	l, err := net.Listen("tcp6", "[::1]:0")
	must(t, err)
	defer func() { _ = l.Close() }()
	connect := func(to netip.AddrPort) (*net.TCPConn, error) {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		f := os.NewFile(uintptr(fd), "socket")
		defer func() { _ = f.Close() }()
		must(t, bindAddress(f, netip.IPv6Loopback()))
		return connectSocket(t.Context(), f, to)
	}
	to := addrPort(l.Addr())
	c, err := connect(to)
	must(t, err)
	if got := addrPort(c.LocalAddr()).Addr(); got != netip.IPv6Loopback() {
		t.Errorf("connected from %s", got)
	}
	must(t, c.Close())
	must(t, l.Close())
	if _, err := connect(to); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("got %v, want to be refused", err)
	}
}
