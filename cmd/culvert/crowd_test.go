package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/agent/nodepage"
	"github.com/culvert-mesh/culvert/tunnel/telemetry"
)

const stallers = 200

// TestStallersKeepNobodyAway: two hundred that ask, read one byte and stall, all from the very address that Prometheus, or
// a browser, comes from.
func TestStallersKeepNobodyAway(t *testing.T) {
	metrics := telemetry.New()
	for i := range 20000 { // 30 MB
		id := fmt.Sprintf("spiffe://cluster.local/ns/namespace/sa/account-%d", i)
		metrics.Traffic.Close(metrics.Traffic.Open(telemetry.Labels{Source: telemetry.PartyOf(id), Flags: telemetry.FlagsNone}))
	}
	many := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "many", Help: "Many."}, []string{"label"})
	for i := range 2000 {
		many.WithLabelValues(fmt.Sprint(strings.Repeat("x", 500), i)).Set(1)
	}
	page := nodepage.Page{Node: "n"}
	for i := range 500 {
		page.Workloads = append(page.Workloads, nodepage.Workload{Namespace: "shop", Pod: fmt.Sprint("pod-", i), Why: strings.Repeat("why ", 200)})
	}
	tests := map[string]struct {
		server func(*statusServer)
		path   string
		least  int
	}{
		"a tunnel's metrics": {func(s *statusServer) { s.metrics = metrics.Handler(s.registry) }, "/metrics", 30 << 20},
		"an agent's metrics": {func(s *statusServer) { s.registry.MustRegister(many) }, "/metrics", 1 << 20},
		"the node page": {func(s *statusServer) {
			s.page = nodepage.Handler(pageOf{page}, slog.New(slog.DiscardHandler))
		}, "/", 300 << 10},
		"health": {func(s *statusServer) { s.metrics = metrics.Handler(s.registry) }, "/healthz", 2},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s, err := listenStatus("127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			test.server(s)
			ctx, cancel := context.WithCancel(t.Context())
			var served sync.WaitGroup
			served.Go(func() {
				if err := s.run(ctx); err != nil {
					t.Error(err)
				}
			})
			defer served.Wait()
			defer cancel()
			address := s.listener.Addr().String()
			path := test.path
			if path == "/healthz" {
				path = "/metrics" // what stalls
			}
			var silent []net.Conn
			for i := range stallers {
				c := stall(t, address, path, i%2 == 0)
				defer c.Close()
				if i%2 == 1 {
					silent = append(silent, c)
				}
			}
			begin := time.Now()
			got, err := get("http://" + address + test.path)
			if err != nil || len(got) < test.least {
				t.Fatalf("%d bytes, %v; want %d at least", len(got), err, test.least)
			}
			t.Logf("%d bytes in %s", len(got), time.Since(begin).Round(time.Millisecond))
			if n := connected(silent); n > maxCrowd {
				t.Errorf("%d of those who did not ask are still connected", n)
			}
		})
	}
}

type pageOf struct{ page nodepage.Page }

func (p pageOf) Page(context.Context) (nodepage.Page, error) { return p.page, nil }

// stall asks and reads one byte, or does not even ask.
func stall(t *testing.T, address, path string, asks bool) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	if asks {
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path)
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal("a staller was not even answered: ", err)
		}
	}
	return c
}

func connected(all []net.Conn) (n int) {
	for _, c := range all {
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			n++
		}
	}
	return n
}

// get is a scrape as Prometheus does it.
func get(url string) ([]byte, error) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get(url)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %s", answer.Status)
	}
	return io.ReadAll(answer.Body)
}

// named is a connection of an address.
type named struct {
	net.Conn
	from   string
	closed bool
}

func (n *named) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(n.from + ":99"))
}

func (n *named) Close() error {
	n.closed = true
	return nil
}

func TestWhoMakesRoom(t *testing.T) {
	type entrant struct {
		from string
		idle bool
	}
	tests := map[string]struct {
		first []entrant // the others come from 10.0.0.9
		left  int       // who of first; -1: one of the others
	}{
		"the one that has stalled for longest": {[]entrant{{"10.0.0.9", false}}, 0},
		"not the only one of an address":       {[]entrant{{"10.0.0.1", false}}, -1},
		"not even when it is idle":             {[]entrant{{"10.0.0.1", true}}, -1},
		"an idle one first":                    {[]entrant{{"10.0.0.9", false}, {"10.0.0.9", true}}, 1},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &crowd{open: map[net.Conn]member{}}
				var all []*named
				enter := func(from string) *named {
					n := &named{from: from}
					all = append(all, n)
					c.changed(n, http.StateNew)
					time.Sleep(time.Millisecond)
					return n
				}
				for _, e := range test.first {
					n := enter(e.from)
					if c.changed(n, http.StateActive); e.idle {
						c.changed(n, http.StateIdle)
					}
					time.Sleep(time.Millisecond)
				}
				for len(all) < maxCrowd {
					enter("10.0.0.9")
				}
				enter("10.0.0.2")
				for i, n := range all {
					left := i == test.left || test.left < 0 && i == len(test.first)
					if n.closed != left {
						t.Errorf("connection %d of %s: closed %v, want %v", i, n.from, n.closed, left)
					}
					c.changed(n, http.StateClosed)
				}
				if len(c.open) != 0 {
					t.Errorf("%d connections are remembered that have ended", len(c.open))
				}
			})
		})
	}
}
