package hbone

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// rawClient speaks HTTP/2 by hand, with golang.org/x/net's Framer, to our server.
type rawClient struct {
	t    testing.TB
	conn *tls.Conn
	*http2.Framer
	server *Conn
}

// rawTLS makes a server and a plain TLS connection to it.
func rawTLS(t testing.TB, cfg Config, h Handler) (*tls.Conn, *Conn) {
	t.Helper()
	cc, sc := tlsConfigs(t)
	a, b := tcpPair(t)
	made := make(chan *Conn, 1)
	go func() {
		c, err := Server(context.Background(), b, sc, cfg, h)
		if err != nil {
			t.Error(err)
		}
		made <- c
	}()
	conn := tls.Client(a, cc)
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	server := <-made
	t.Cleanup(func() { conn.Close(); server.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn, server
}

func newRawClient(t testing.TB, cfg Config, h Handler) *rawClient {
	t.Helper()
	conn, server := rawTLS(t, cfg, h)
	io.WriteString(conn, clientPreface)
	r := &rawClient{t: t, conn: conn, Framer: http2.NewFramer(conn, conn), server: server}
	r.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	r.AllowIllegalWrites = true
	r.WriteSettings()
	return r
}

func block(fields ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return b.Bytes()
}

func connectBlock() []byte { return block(":method", "CONNECT", ":authority", "10.0.0.1:80") }

func (r *rawClient) connect(id uint32) {
	r.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: connectBlock(), EndHeaders: true})
}

// next returns the next frame that satisfies want.
func next[F http2.Frame](r *rawClient, want func(F) bool) F {
	r.t.Helper()
	for {
		f, err := r.ReadFrame()
		if err != nil {
			var zero F
			r.t.Fatalf("waiting for %T: %v", zero, err)
		}
		if f, ok := f.(F); ok && (want == nil || want(f)) {
			return f
		}
	}
}

func (r *rawClient) status(id uint32) string {
	r.t.Helper()
	return next(r, func(f *http2.MetaHeadersFrame) bool { return f.StreamID == id }).PseudoValue("status")
}

func (r *rawClient) wantGoAway(code ErrCode) {
	r.t.Helper()
	if f := next[*http2.GoAwayFrame](r, nil); ErrCode(f.ErrCode) != code {
		r.t.Errorf("GOAWAY %v, want %v", ErrCode(f.ErrCode), code)
	}
	await(r.t, r.server.Done(), "server's end")
}

func (r *rawClient) wantReset(id uint32, code ErrCode) {
	r.t.Helper()
	f := next(r, func(f *http2.RSTStreamFrame) bool { return f.StreamID == id })
	if ErrCode(f.ErrCode) != code {
		r.t.Errorf("RST_STREAM %v, want %v", ErrCode(f.ErrCode), code)
	}
}

func refuse503(_ context.Context, r *Request) { r.Refuse(503) }

// echoHandler connects streams to an application that echoes.
func echoHandler(t testing.TB) Handler {
	return func(_ context.Context, r *Request) {
		app, ours := tcpPair(t)
		go func() {
			io.Copy(app, app)
			app.CloseWrite()
		}()
		r.Accept(ours)
	}
}

func TestServerSettings(t *testing.T) {
	r := newRawClient(t, Config{}, refuse503)
	f := next[*http2.SettingsFrame](r, nil)
	want := map[http2.SettingID]uint32{
		http2.SettingInitialWindowSize: 256 << 10, http2.SettingMaxFrameSize: 1 << 20,
		http2.SettingMaxConcurrentStreams: 200, http2.SettingMaxHeaderListSize: 64 << 10,
	}
	for id, v := range want {
		if got, _ := f.Value(id); got != v {
			t.Errorf("%v = %d, want %d", id, got, v)
		}
	}
	if w := next[*http2.WindowUpdateFrame](r, nil); w.Increment != 16<<20-65535 {
		t.Errorf("connection window grows by %d", w.Increment)
	}
}

func TestRawEcho(t *testing.T) {
	r := newRawClient(t, Config{}, echoHandler(t))
	// HEADERS in three frames, padded and with a priority; DATA padded, before the answer.
	b := connectBlock()
	r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:3], PadLength: 7, Priority: http2.PriorityParam{StreamDep: 5, Weight: 3}})
	r.WriteContinuation(1, false, nil)
	r.WriteContinuation(1, true, b[3:])
	r.WriteDataPadded(1, false, []byte("hello "), make([]byte, 100))
	r.WriteDataPadded(1, true, []byte("world"), nil)
	if s := r.status(1); s != "200" {
		t.Fatalf("status %s", s)
	}
	var got []byte
	for {
		f := next[*http2.DataFrame](r, nil)
		got = append(got, f.Data()...)
		if f.StreamEnded() {
			break
		}
	}
	if string(got) != "hello world" {
		t.Errorf("got %q", got)
	}
}

func TestPingIsAnswered(t *testing.T) {
	r := newRawClient(t, Config{}, refuse503)
	r.WritePing(false, [8]byte{1, 2, 3})
	if f := next(r, (*http2.PingFrame).IsAck); f.Data != [8]byte{1, 2, 3} {
		t.Errorf("PING data %v", f.Data)
	}
}

func TestBadRequests(t *testing.T) {
	for name, b := range map[string][]byte{
		"GET":            block(":method", "GET", ":scheme", "https", ":path", "/", ":authority", "a"),
		"no authority":   block(":method", "CONNECT"),
		"path":           block(":method", "CONNECT", ":authority", "a:1", ":path", "/"),
		"extended":       block(":method", "CONNECT", ":authority", "a:1", ":protocol", "websocket"),
		"twice":          block(":method", "CONNECT", ":authority", "a:1", ":authority", "b:1"),
		"pseudo behind":  block(":method", "CONNECT", "x", "y", ":authority", "a:1"),
		"uppercase":      block(":method", "CONNECT", ":authority", "a:1", "X-Y", "z"),
		"hop by hop":     block(":method", "CONNECT", ":authority", "a:1", "connection", "close"),
		"nothing at all": {},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRawClient(t, Config{}, func(context.Context, *Request) { t.Error("handler called") })
			r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b, EndHeaders: true})
			if s := r.status(1); s != "400" {
				t.Errorf("status %s, want 400", s)
			}
		})
	}
}

// TestResetStreamsCreditConnection sends more than the connection's window to streams that are gone.
func TestResetStreamsCreditConnection(t *testing.T) {
	r := newRawClient(t, Config{ConnWindow: 1 << 20, MaxResets: 10000}, refuse503)
	go func() {
		for id := uint32(1); id < 200; id += 2 {
			r.connect(id)
			r.WriteRSTStream(id, http2.ErrCodeCancel)
			r.WriteData(id, false, make([]byte, 16<<10))
		}
	}()
	for total := uint32(0); total < 1400<<10; {
		total += next(r, func(f *http2.WindowUpdateFrame) bool { return f.StreamID == 0 && f.Increment < 15<<20 }).Increment
	}
}

// TestShrinkingWindow makes a stream's window negative while bytes are in flight.
func TestShrinkingWindow(t *testing.T) {
	payload := randomBytes(100 << 10)
	r := newRawClient(t, Config{}, func(_ context.Context, req *Request) {
		app, ours := tcpPair(t)
		go app.Write(payload)
		req.Accept(ours)
	})
	r.connect(1)
	var got []byte
	read := func(n int) {
		for len(got) < n {
			got = append(got, next[*http2.DataFrame](r, nil).Data()...)
		}
	}
	read(65535)
	r.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10000}) // the window is -55535
	r.WriteWindowUpdate(0, 1<<20)
	r.WriteWindowUpdate(1, 55535) // and now 0
	r.WritePing(false, [8]byte{1})
	for {
		f, err := r.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := f.(*http2.DataFrame); ok {
			t.Fatalf("%d bytes sent without window", len(d.Data()))
		}
		if p, ok := f.(*http2.PingFrame); ok && p.IsAck() {
			break
		}
	}
	r.WriteWindowUpdate(1, 100<<10)
	read(len(payload))
	if !bytes.Equal(got, payload) {
		t.Error("bytes differ")
	}
}

func TestSlowPeers(t *testing.T) {
	cfg := Config{HandshakeTimeout: 100 * time.Millisecond, PrefaceTimeout: 100 * time.Millisecond, HeaderTimeout: 100 * time.Millisecond}
	t.Run("handshake", func(t *testing.T) {
		_, sc := tlsConfigs(t)
		_, b := tcpPair(t)
		if _, err := Server(context.Background(), b, sc, cfg, refuse503); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("preface", func(t *testing.T) {
		conn, server := rawTLS(t, cfg, refuse503)
		io.WriteString(conn, clientPreface[:10])
		await(t, server.Done(), "server's end")
	})
	t.Run("header block", func(t *testing.T) {
		r := newRawClient(t, cfg, refuse503)
		r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: connectBlock()})
		r.wantGoAway(CodeCalm)
	})
	t.Run("silent", func(t *testing.T) {
		r := newRawClient(t, Config{PingInterval: 20 * time.Millisecond, PingTimeout: 100 * time.Millisecond}, refuse503)
		await(t, r.server.Done(), "server's end")
	})
}

func TestNotMutual(t *testing.T) {
	cc, sc := tlsConfigs(t)
	a, b := tcpPair(t)
	cc.Certificates = nil
	go tls.Client(a, cc).Handshake()
	if c, err := Server(context.Background(), b, sc, Config{}, refuse503); err == nil {
		c.Close()
		t.Error("a client without certificate was taken")
	}
	cc, sc = tlsConfigs(t)
	a, b = tcpPair(t)
	sc.NextProtos = nil
	go func() {
		c := tls.Server(b, sc)
		c.Handshake()
	}()
	if c, err := Client(context.Background(), a, cc, Config{}); err == nil {
		c.Close()
		t.Error("a server without ALPN was taken")
	}
	if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Error("socket left open")
	}
}

// TestServerRefusesStreams opens more streams than the server allows.
func TestServerRefusesStreams(t *testing.T) {
	r := newRawClient(t, Config{MaxStreams: 2}, func(ctx context.Context, r *Request) { <-ctx.Done(); r.Refuse(503) })
	for id := uint32(1); id < 7; id += 2 {
		r.connect(id)
	}
	r.wantReset(5, CodeRefusedStream)
	if n := r.server.ActiveStreams(); n != 2 {
		t.Errorf("%d streams active, want 2", n)
	}
}

// TestGoAwayGivesUpUnseenStreams has the server name a last stream below one that is waiting.
func TestGoAwayGivesUpUnseenStreams(t *testing.T) {
	tn := newTunnel(t, Config{}, func(ctx context.Context, r *Request) { <-ctx.Done(); r.Refuse(503) })
	failed := make(chan error, 1)
	go func() {
		_, err := tn.client.Connect(context.Background(), Request{Authority: "a:1"})
		failed <- err
	}()
	for tn.server.ActiveStreams() == 0 {
		time.Sleep(time.Millisecond)
	}
	tn.server.mu.Lock()
	tn.server.goAway(0, CodeCalm)
	tn.server.flush(false)
	tn.server.mu.Unlock()
	if err := await(t, failed, "Connect"); !errors.Is(err, ErrGoAway) {
		t.Errorf("Connect: %v, want ErrGoAway", err)
	}
	var pe *ProtocolError
	await(t, tn.client.Done(), "client's end")
	if err := tn.client.Err(); !errors.As(err, &pe) || !pe.Remote || pe.Code != CodeCalm {
		t.Errorf("client ended with %v", err)
	}
}
