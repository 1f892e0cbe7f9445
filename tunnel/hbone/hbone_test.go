package hbone

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestEcho(t *testing.T) {
	tn, apps := newAppTunnel(t, Config{})
	client, server, relayed := tn.open(t, apps)
	exchange(t, client, server, []byte("hello"))
	exchange(t, server, client, randomBytes(300<<10))
	client.CloseWrite()
	if n, err := server.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("server read %d, %v, want EOF", n, err)
	}
	exchange(t, server, client, []byte("after your FIN")) // half-closed
	server.CloseWrite()
	if _, err := client.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("client read %v, want EOF", err)
	}
	want := Stats{Sent: 5, Received: 300<<10 + 14}
	if r := await(t, relayed, "client relay"); r.err != nil || r.stats != want {
		t.Errorf("client: %+v, %v, want %+v", r.stats, r.err, want)
	}
	if r := await(t, tn.results, "server relay"); r.err != nil || r.stats.Sent != want.Received || r.stats.Received != 5 {
		t.Errorf("server: %+v, %v", r.stats, r.err)
	}
	if n := tn.client.ActiveStreams(); n != 0 {
		t.Errorf("%d streams active", n)
	}
}

func TestHalfCloseByServer(t *testing.T) {
	tn, apps := newAppTunnel(t, Config{})
	client, server, relayed := tn.open(t, apps)
	exchange(t, server, client, []byte("220 server speaks first"))
	server.CloseWrite()
	if _, err := client.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("client read %v, want EOF", err)
	}
	exchange(t, client, server, randomBytes(1<<20))
	client.Close()
	if r := await(t, relayed, "client relay"); r.err != nil {
		t.Error(r.err)
	}
}

func TestResets(t *testing.T) {
	for _, side := range []string{"client", "server"} {
		t.Run(side, func(t *testing.T) {
			tn, apps := newAppTunnel(t, Config{})
			client, server, relayed := tn.open(t, apps)
			exchange(t, client, server, []byte("x"))
			from, to := client, server
			if side == "server" {
				from, to = server, client
			}
			from.SetLinger(0)
			from.Close()
			if _, err := to.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("other end read %v, want ECONNRESET", err)
			}
			var reset *ResetError
			if r := await(t, relayed, "relay"); !errors.As(r.err, &reset) || reset.Remote != (side == "server") || reset.Code != CodeCancel {
				t.Errorf("client relay: %v", r.err)
			}
			if r := await(t, tn.results, "relay"); !errors.As(r.err, &reset) || reset.Remote != (side == "client") {
				t.Errorf("server relay: %v", r.err)
			}
			client, server, _ = tn.open(t, apps) // the connection goes on
			exchange(t, client, server, []byte("y"))
		})
	}
}

func TestResetWhileWaitingForWindow(t *testing.T) {
	tn, apps := newAppTunnel(t, Config{})
	client, server, relayed := tn.open(t, apps)
	fill(t, client)
	client.SetLinger(0)
	client.Close()
	var reset *ResetError
	if r := await(t, relayed, "relay"); !errors.As(r.err, &reset) || reset.Remote {
		t.Errorf("client relay: %v", r.err)
	}
	if _, err := io.Copy(io.Discard, server); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("server read %v, want ECONNRESET", err)
	}
}

// fill writes until nothing is taken any more.
func fill(t testing.TB, c *net.TCPConn) {
	t.Helper()
	b := make([]byte, 64<<10)
	for {
		c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

func TestRefuse(t *testing.T) {
	for _, code := range []int{400, 401, 503} {
		tn := newTunnel(t, Config{}, func(_ context.Context, r *Request) { r.Refuse(code) })
		for range 3 {
			var status *StatusError
			if _, err := tn.client.Connect(context.Background(), Request{Authority: "a:1"}); !errors.As(err, &status) || status.Code != code {
				t.Errorf("got %v, want status %d", err, code)
			}
		}
		if !tn.client.Usable() || tn.client.ActiveStreams() != 0 {
			t.Error("connection not usable after a refusal")
		}
	}
}

func TestRequestHeaders(t *testing.T) {
	got := make(chan Request, 1)
	tn := newTunnel(t, Config{}, func(_ context.Context, r *Request) { got <- *r; r.Refuse(503) })
	want := Request{Authority: "[fd00::1]:80", Forwarded: `for="10.0.0.1:1"`, Baggage: "a=b", Traceparent: string(make([]byte, 3000))}
	tn.client.Connect(context.Background(), want)
	r := await(t, got, "request")
	if r.Authority != want.Authority || r.Forwarded != want.Forwarded || r.Baggage != want.Baggage || r.Traceparent != want.Traceparent {
		t.Errorf("got %+v", r)
	}
}

func TestConnectCancelled(t *testing.T) {
	ended := make(chan error, 1)
	tn := newTunnel(t, Config{}, func(ctx context.Context, r *Request) {
		<-ctx.Done()
		ended <- r.Refuse(503)
	})
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := tn.client.Connect(ctx, Request{Authority: "a:1"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if err := await(t, ended, "handler's context"); err == nil {
		t.Error("Refuse of a cancelled request succeeded")
	}
}

func TestManyStreams(t *testing.T) {
	tn, apps := newAppTunnel(t, Config{})
	var wg sync.WaitGroup
	for range 60 {
		client, server, relayed := tn.open(t, apps)
		for _, d := range [][2]*net.TCPConn{{client, server}, {server, client}} {
			wg.Go(func() { checksum(t, d[0], d[1], 2<<20) })
		}
		wg.Go(func() {
			if r := await(t, relayed, "relay"); r.err != nil {
				t.Error(r.err)
			}
		})
	}
	wg.Wait()
}

func TestBulk(t *testing.T) {
	tn, apps := newAppTunnel(t, Config{})
	client, server, _ := tn.open(t, apps)
	checksum(t, client, server, 64<<20)
	checksum(t, server, client, 64<<20)
}

// checksum sends n random bytes and a FIN.
func checksum(t *testing.T, from, to *net.TCPConn, n int64) {
	sent := make(chan [32]byte, 1)
	go func() {
		h := sha256.New()
		block := randomBytes(1 << 20)
		for left := n; left > 0; {
			b := block[:min(left, int64(1+int(block[0])*4000))]
			h.Write(b)
			if _, err := from.Write(b); err != nil {
				t.Error(err)
				break
			}
			left -= int64(len(b))
			block[0]++
		}
		from.CloseWrite()
		sent <- [32]byte(h.Sum(nil))
	}()
	h := sha256.New()
	if got, err := io.Copy(h, to); err != nil || got != n {
		t.Errorf("got %d bytes, %v, want %d", got, err, n)
	}
	if await(t, sent, "sender") != [32]byte(h.Sum(nil)) {
		t.Error("checksums differ")
	}
}

func TestStalledStreamsDoNotStopOthers(t *testing.T) {
	budget := NewBudget(64 << 20)
	var stalls atomic.Uint64
	tn, apps := newAppTunnel(t, Config{Budget: budget, Stalls: &stalls})
	for range 8 {
		client, _, _ := tn.open(t, apps)
		fill(t, client)
	}
	client, server, _ := tn.open(t, apps)
	if n := stalls.Load(); n < 8 {
		t.Errorf("%d stalls counted, want one for each stream at least", n)
	}
	exchange(t, client, server, []byte("ping"))
	checksum(t, client, server, 32<<20)
	if used := budget.Used(); used == 0 || used > 40<<20 {
		t.Errorf("budget holds %d bytes", used)
	}
	tn.client.Close()
	tn.server.Close()
	for range 9 {
		await(t, tn.results, "server relay")
	}
	if used := budget.Used(); used != 0 {
		t.Errorf("budget holds %d bytes after the end", used)
	}
}

func TestBudgetExhausted(t *testing.T) {
	tn, apps := newAppTunnel(t, Config{Budget: NewBudget(64 << 10)})
	client, _, relayed := tn.open(t, apps)
	fill(t, client)
	var reset *ResetError
	if r := await(t, relayed, "relay"); !errors.As(r.err, &reset) || reset.Code != CodeCalm {
		t.Errorf("got %v, want ENHANCE_YOUR_CALM", r.err)
	}
	client, server, _ := tn.open(t, apps)
	exchange(t, client, server, []byte("ping"))
}

func TestShutdownDrains(t *testing.T) {
	for _, side := range []string{"client", "server"} {
		t.Run(side, func(t *testing.T) {
			tn, apps := newAppTunnel(t, Config{})
			client, server, relayed := tn.open(t, apps)
			exchange(t, client, server, []byte("x"))
			down := make(chan error, 1)
			conn := tn.client
			if side == "server" {
				conn = tn.server
			}
			go func() { down <- conn.Shutdown(context.Background()) }()
			for tn.client.Usable() {
				time.Sleep(time.Millisecond)
			}
			if _, err := tn.client.Connect(context.Background(), Request{Authority: "a:1"}); !errors.Is(err, ErrGoAway) {
				t.Errorf("Connect: %v, want ErrGoAway", err)
			}
			exchange(t, client, server, []byte("still there"))
			client.CloseWrite()
			checksum(t, server, client, 1<<20)
			if r := await(t, relayed, "relay"); r.err != nil {
				t.Error(r.err)
			}
			if err := await(t, down, "Shutdown"); err != nil {
				t.Error(err)
			}
			await(t, tn.client.Done(), "client's end")
			await(t, tn.server.Done(), "server's end")
		})
	}
}

func TestShutdownTimeout(t *testing.T) {
	tn, apps := newAppTunnel(t, Config{})
	client, _, _ := tn.open(t, apps)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := tn.client.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v", err)
	}
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("application read %v, want ECONNRESET", err)
	}
}

func TestStreamLimit(t *testing.T) {
	tn, apps := newAppTunnel(t, Config{MaxStreams: 2})
	tn.open(t, apps)
	tn.open(t, apps)
	if _, err := tn.client.Connect(context.Background(), Request{Authority: "a:1"}); err != ErrStreams {
		t.Errorf("got %v, want ErrStreams", err)
	}
	if tn.client.MaxStreams() != 2 || tn.client.ActiveStreams() != 2 {
		t.Errorf("limit %d, active %d", tn.client.MaxStreams(), tn.client.ActiveStreams())
	}
}

func TestKeepalive(t *testing.T) {
	cfg := Config{PingInterval: 20 * time.Millisecond, PingTimeout: 200 * time.Millisecond}
	tn, apps := newAppTunnel(t, cfg)
	client, server, _ := tn.open(t, apps)
	time.Sleep(500 * time.Millisecond)
	exchange(t, client, server, []byte("alive"))
	if err := tn.client.Err(); err != nil {
		t.Error(err)
	}
}
