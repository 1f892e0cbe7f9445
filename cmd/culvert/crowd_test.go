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

const stallers = 100

// TestStallersKeepNobodyAway: a hundred that ask, read one byte and stall, all from the very address that Prometheus, or
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
			t.Parallel()
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

// TestStallersKeepNobodyFromACA: its status is served as that of agents and tunnels is.
func TestStallersKeepNobodyFromACA(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	many := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "many", Help: "Many."}, []string{"label"})
	for i := range 2000 {
		many.WithLabelValues(fmt.Sprint(strings.Repeat("x", 500), i)).Set(1)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(many)
	ctx, cancel := context.WithCancel(t.Context())
	var served sync.WaitGroup
	served.Go(func() {
		health := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "health at ", r.URL.Path) })
		if err := serveStatus(ctx, l, registry, health); err != nil {
			t.Error(err)
		}
	})
	defer served.Wait()
	defer cancel()
	for range maxCrowd {
		defer stall(t, l.Addr().String(), "/metrics", true).Close()
	}
	for path, least := range map[string]int{"/metrics": 1 << 19, "/readyz": len("health at /readyz")} {
		if got, err := get("http://" + l.Addr().String() + path); err != nil || len(got) < least {
			t.Errorf("%s: %d bytes, %v", path, len(got), err)
		}
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
	return getWith(&http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}, url)
}

func getWith(client *http.Client, url string) ([]byte, error) {
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

// TestNobodyIsCutOffByOthersOfItsAddress: a hundred in lock step ask for some hundred kilobytes, five times.
func TestNobodyIsCutOffByOthersOfItsAddress(t *testing.T) {
	many := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "many", Help: "Many."}, []string{"label"})
	for i := range 300 {
		many.WithLabelValues(fmt.Sprint(strings.Repeat("x", 500), i)).Set(1)
	}
	s, err := listenStatus("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.registry.MustRegister(many)
	ctx, cancel := context.WithCancel(t.Context())
	var served sync.WaitGroup
	served.Go(func() {
		if err := s.run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer served.Wait()
	defer cancel()
	clients := make([]*http.Client, 100) // which would like to keep their connections
	for i := range clients {
		clients[i] = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{}}
	}
	for range 5 {
		var round sync.WaitGroup
		for _, client := range clients {
			round.Go(func() {
				if got, err := getWith(client, "http://"+s.listener.Addr().String()+"/metrics"); err != nil || len(got) < 150<<10 {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			})
		}
		round.Wait()
	}
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

// door is a listener to which connections come as a test wants.
type door chan net.Conn

func (d door) Accept() (net.Conn, error) {
	if conn, ok := <-d; ok {
		return conn, nil
	}
	return nil, net.ErrClosed
}

func (door) Close() error   { return nil }
func (door) Addr() net.Addr { return nil }

func TestWhoMakesRoom(t *testing.T) {
	const one, another = "10.0.0.1", "10.0.0.9"
	served := func(g *guest) { g.asked() }
	silent := func(*guest) {}
	stalled := func(g *guest) {
		g.asked()
		g.since.Store(time.Now().UnixNano())
	}
	type first struct {
		from string
		is   func(*guest)
	}
	tests := map[string]struct {
		first  first         // the others are of another address
		others func(*guest)  // what they are
		from   string        // the newcomer
		gone   int           // 0: the first; 1: the first of the others; -1: nobody
		after  time.Duration // the newcomer is in; 0: it is sent away
	}{
		"who stalls, for one of its address":                    {first{another, stalled}, served, another, 0, patience},
		"who stalls, for one of another":                        {first{another, stalled}, served, "10.0.0.2", 0, patience},
		"who does not ask":                                      {first{another, silent}, served, another, 0, patience},
		"who has stalled for longest":                           {first{another, stalled}, stalled, another, 0, patience},
		"nobody who is served, for others of its address":       {first{another, served}, served, another, -1, 0},
		"who is served, for an address that has nobody":         {first{another, served}, served, "10.0.0.2", 0, patience},
		"not the only one of an address":                        {first{one, stalled}, stalled, "10.0.0.2", 1, patience},
		"not the only one of an address, for one that has most": {first{one, stalled}, served, another, -1, 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := make(door)
				c := newCrowd(d)
				in := make(chan *guest, maxCrowd+1)
				var receiving, accepting sync.WaitGroup
				receiving.Go(c.receive)
				accepting.Go(func() {
					for {
						conn, err := c.Accept()
						if err != nil {
							return
						}
						in <- conn.(*guest)
					}
				})
				var all []*named
				enter := func(from string) *named {
					n := &named{from: from}
					all = append(all, n)
					d <- n
					return n
				}
				enter(test.first.from)
				test.first.is(<-in)
				for len(all) < maxCrowd {
					time.Sleep(time.Millisecond)
					enter(another)
					test.others(<-in)
				}
				begin := time.Now()
				newcomer := enter(test.from)
				select {
				case g := <-in:
					if g.Conn != newcomer || test.after == 0 || time.Since(begin) > test.after+doorstep {
						t.Errorf("it was in after %s, want %s", time.Since(begin), test.after)
					}
				case <-time.After(maxWait + time.Second):
					synctest.Wait()
					if test.after > 0 || !newcomer.closed {
						t.Errorf("it was not let in, and sent away: %v", newcomer.closed)
					}
				}
				synctest.Wait()
				for i, n := range all[:maxCrowd] {
					if n.closed != (i == test.gone) {
						t.Errorf("connection %d of %s: closed %v", i, n.from, n.closed)
					}
				}
				close(d)
				accepting.Wait()
				close(c.done)
				receiving.Wait()
			})
		})
	}
}

// TestTooManyWait: of the address of which most wait, one is sent away, and who leaves lets the next in at once.
func TestTooManyWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(make(door))
		var in []*guest
		arrive := func(from string) *named {
			n := &named{from: from}
			c.arrive(n)
			if g := c.next(time.Now()); g != nil {
				g.asked()
				in = append(in, g)
			}
			return n
		}
		alone := arrive("10.0.0.1")
		var all []*named
		for range maxCrowd + 2*maxWaiting {
			all = append(all, arrive("10.0.0.9"))
		}
		last := arrive("10.0.0.1")
		closed := 0
		for _, n := range all {
			if n.closed {
				closed++
			}
		}
		if len(in) != maxCrowd || len(c.waiting) != maxWaiting || closed != maxWaiting+2 || alone.closed || last.closed {
			t.Errorf("%d in, %d wait, %d sent away; the others: %v, %v", len(in), len(c.waiting), closed, alone.closed, last.closed)
		}
		_ = in[1].Close()
		if g := c.next(time.Now()); g == nil || g.Conn != last {
			t.Error("who has fewer places was not the next")
		}
	})
}
