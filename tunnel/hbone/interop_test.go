package hbone

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"

	"golang.org/x/net/http2"
)

// netServer is an x/net http2 server that answers CONNECT.
func netServer(t *testing.T, h http.HandlerFunc) *Conn {
	t.Helper()
	cc, sc := tlsConfigs(t)
	a, b := tcpPair(t)
	go func() {
		conn := tls.Server(b, sc)
		if err := conn.Handshake(); err != nil {
			t.Error(err)
			return
		}
		//lint:ignore SA1019 a peer on a connection that is there already; net/http serves listeners only
		(&http2.Server{}).ServeConn(conn, &http2.ServeConnOpts{Handler: h})
	}()
	c, err := Client(context.Background(), a, cc, Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestOurClientTheirServer(t *testing.T) {
	c := netServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect || r.Host != "10.0.0.1:80" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		b := make([]byte, 64<<10)
		for {
			n, err := r.Body.Read(b)
			w.Write(b[:n])
			w.(http.Flusher).Flush()
			if err != nil {
				return
			}
		}
	})
	s, err := c.Connect(context.Background(), Request{Authority: "10.0.0.1:80"})
	if err != nil {
		t.Fatal(err)
	}
	app, ours := tcpPair(t)
	relayed := make(chan error, 1)
	go func() {
		_, err := s.Relay(ours)
		relayed <- err
	}()
	payload := randomBytes(8 << 20)
	go func() {
		app.Write(payload)
		app.CloseWrite()
	}()
	got, err := io.ReadAll(app)
	if err != nil || !bytes.Equal(got, payload) {
		t.Errorf("got %d bytes back, %v, want %d", len(got), err, len(payload))
	}
	if err := await(t, relayed, "relay"); err != nil {
		t.Error(err)
	}
	var status *StatusError
	if _, err := c.Connect(context.Background(), Request{Authority: "other:1"}); !errors.As(err, &status) || status.Code != 400 {
		t.Errorf("got %v, want status 400", err)
	}
}

// TestTheirServerEndsFirst has a server that answers and goes, without reading: RST_STREAM(NO_ERROR).
func TestTheirServerEndsFirst(t *testing.T) {
	c := netServer(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "all of it") })
	s, err := c.Connect(context.Background(), Request{Authority: "10.0.0.1:80"})
	if err != nil {
		t.Fatal(err)
	}
	app, ours := tcpPair(t)
	relayed := make(chan error, 1)
	go func() {
		_, err := s.Relay(ours)
		relayed <- err
	}()
	if got, err := io.ReadAll(app); err != nil || string(got) != "all of it" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := await(t, relayed, "relay"); err != nil {
		t.Error(err)
	}
}

func TestTheirClientOurServer(t *testing.T) {
	cc, sc := tlsConfigs(t)
	a, b := tcpPair(t)
	made := make(chan *Conn, 1)
	go func() {
		c, err := Server(context.Background(), b, sc, Config{}, func(ctx context.Context, r *Request) {
			if r.Authority != "10.0.0.1:80" {
				r.Refuse(503)
				return
			}
			echoHandler(t)(ctx, r)
		})
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
	defer server.Close()
	//lint:ignore SA1019 a peer on a connection that is there already
	cl, err := (&http2.Transport{}).NewClientConn(conn)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for range 3 {
		payload := randomBytes(4 << 20)
		resp, err := cl.RoundTrip(connectRequest("10.0.0.1:80", io.NopCloser(bytes.NewReader(payload))))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		if err != nil || !bytes.Equal(got, payload) {
			t.Errorf("got %d bytes back, %v", len(got), err)
		}
	}
	body, w := net.Pipe()
	defer w.Close()
	resp, err := cl.RoundTrip(connectRequest("else:1", body))
	if err != nil || resp.StatusCode != 503 {
		t.Errorf("got %v, %v, want 503", resp, err)
	}
}

func connectRequest(authority string, body io.ReadCloser) *http.Request {
	return &http.Request{Method: http.MethodConnect, URL: &url.URL{Host: authority, Scheme: "https"}, Host: authority,
		Body: body, ContentLength: -1, Header: http.Header{}}
}
