package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// freePort returns a port that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// start runs app until the test ends and waits until the port answers.
func start(t *testing.T, port string, args ...string) *bytes.Buffer {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	out := new(bytes.Buffer)
	go func() { ended <- run(ctx, args, out) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("%v: %v", args, err)
		}
	})
	for range 200 {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = conn.Close()
			return out
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%v does not listen on %s", args, port)
	return nil
}

func get(t *testing.T, client *http.Client, url string) (*http.Response, string) {
	t.Helper()
	response, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(body)
}

func TestServe(t *testing.T) {
	web, second, tcp := freePort(t), freePort(t), freePort(t)
	start(t, tcp, "serve", "--http", web+","+second, "--tcp", tcp)
	for _, port := range []string{web, second} {
		_, body := get(t, http.DefaultClient, "http://127.0.0.1:"+port+"/a/path")
		var got answer
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			t.Fatalf("%v in %q", err, body)
		}
		host, _ := os.Hostname()
		want := answer{Pod: host, Client: got.Client, Server: "127.0.0.1:" + port, Host: "127.0.0.1:" + port, Path: "/a/path"}
		if got != want || !strings.HasPrefix(got.Client, "127.0.0.1:") {
			t.Errorf("answer %+v, want %+v", got, want)
		}
	}
	if _, body := get(t, http.DefaultClient, "http://127.0.0.1:"+web+"/healthz"); body != "ok\n" {
		t.Errorf("/healthz says %q", body)
	}
	echo, err := newTarget("tcp://127.0.0.1:"+tcp, time.Second, false)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := echo.try(t.Context()); err != nil || string(got) != "ping\n" {
		t.Errorf("echo %q, %v", got, err)
	}
}

// TestServeClosesEchoes ends the server while a connection to its echo port is open.
func TestServeClosesEchoes(t *testing.T) {
	port := freePort(t)
	var conn net.Conn
	t.Run("open", func(t *testing.T) {
		start(t, port, "serve", "--http", "", "--tcp", port)
		var err error
		if conn, err = net.Dial("tcp", "127.0.0.1:"+port); err != nil {
			t.Fatal(err)
		}
	})
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection outlived the server")
	}
}

// TestHealth calls the gRPC service as gRPC does: HTTP/2 without TLS, status in the trailer.
func TestHealth(t *testing.T) {
	port := freePort(t)
	start(t, port, "serve", "--http", "", "--grpc", port)
	client := &http.Client{Transport: &http.Transport{Protocols: cleartextHTTP2()}}
	defer client.CloseIdleConnections()
	call := func(method string) (status, body string) {
		request := bytes.NewReader([]byte{0, 0, 0, 0, 0}) // an empty HealthCheckRequest: the server as a whole
		response, err := client.Post("http://127.0.0.1:"+port+method, "application/grpc", request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		content, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		if got := response.Header.Get("Content-Type"); got != "application/grpc" || response.StatusCode != http.StatusOK {
			t.Errorf("%s: %s, content type %q", method, response.Status, got)
		}
		return response.Header.Get("Grpc-Status") + response.Trailer.Get("Grpc-Status"), string(content)
	}
	if status, body := call(healthPath); status != "0" || body != "\x00\x00\x00\x00\x02\x08\x01" {
		t.Errorf("check: status %q, body %q", status, body)
	}
	if status, body := call("/grpc.health.v1.Health/Watch"); status != "12" || body != "" {
		t.Errorf("watch: status %q, body %q", status, body)
	}
}

func TestLoop(t *testing.T) {
	web, counting := freePort(t), freePort(t)
	start(t, web, "serve", "--http", web)
	start(t, counting, "loop", "--url", "http://127.0.0.1:"+web+"/", "--interval", "5ms", "--listen", counting)
	var c counts
	for range 200 {
		_, body := get(t, http.DefaultClient, "http://127.0.0.1:"+counting+"/")
		if err := json.Unmarshal([]byte(body), &c); err != nil {
			t.Fatal(err)
		}
		if c.Succeeded > 2 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if c.Succeeded < 3 || c.Failed != 0 || c.Tries != c.Succeeded || !c.OK {
		t.Errorf("counts %+v", c)
	}
}

// TestLoopPrints ends a loop as a pod is ended, and reads what it prints.
func TestLoopPrints(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	var out bytes.Buffer
	if err := run(ctx, []string{"loop", "--url", "http://127.0.0.1:" + freePort(t) + "/", "--interval", "5ms"}, &out); err != nil {
		t.Fatal(err)
	}
	var c counts
	if err := json.Unmarshal(out.Bytes(), &c); err != nil {
		t.Fatalf("%v in %q", err, out.String())
	}
	if c.Failed == 0 || c.Succeeded != 0 || c.Reasons["connection refused"] != c.Failed || c.OK {
		t.Errorf("counts %+v, want refused connections alone", c)
	}
}

func TestRecord(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	var c counts
	c.record(at(1), time.Second, nil)
	c.record(at(2), 3*time.Second, nil)
	if c.Steady != at(1) || !c.OK || c.SlowestSeconds != 3 {
		t.Errorf("after two successes: %+v", c)
	}
	c.record(at(3), time.Second, fmt.Errorf("read: %w", syscall.ECONNRESET))
	c.record(at(4), time.Second, io.EOF)
	if c.Steady != at(3) || c.OK || c.Tries != 4 || c.Reasons["connection reset"] != 1 || c.Reasons["closed without an answer"] != 1 {
		t.Errorf("after two failures: %+v", c)
	}
	for i := range 100 {
		c.record(at(5), 0, fmt.Errorf("failure %d", i))
	}
	if len(c.Reasons) > mostReasons+1 {
		t.Errorf("%d reasons are kept apart", len(c.Reasons))
	}
}

func TestFirst(t *testing.T) {
	web := freePort(t)
	var out bytes.Buffer
	args := []string{"first", "--url", "http://127.0.0.1:" + web + "/"}
	if err := run(t.Context(), args, &out); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("error %v, want that the connection is refused", err)
	}
	start(t, web, "serve", "--http", web)
	if err := run(t.Context(), args, &out); err != nil {
		t.Error(err)
	}
	var refused, answered outcome
	in := json.NewDecoder(&out)
	if err := errors.Join(in.Decode(&refused), in.Decode(&answered)); err != nil {
		t.Fatal(err)
	}
	if refused.OK || refused.Reason != "connection refused" || !answered.OK || !strings.Contains(answered.Answer, `"Pod"`) {
		t.Errorf("outcomes %+v and %+v", refused, answered)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		nil, {"dance"}, {"loop"}, {"first", "--url", "https://x/"}, {"serve", "--http", "eighty"},
		{"loop", "--url", "http://x/", "--interval", "0s"},
	} {
		if err := run(t.Context(), args, io.Discard); !errors.Is(err, errUsage) {
			t.Errorf("%v: error %v, want one about usage", args, err)
		}
	}
}
