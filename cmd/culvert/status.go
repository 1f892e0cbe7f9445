package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/culvert-mesh/culvert/tunnel/telemetry"
)

const (
	statusTimeout = 5 * time.Second
	// maxStatusHeader bounds a request: nothing in it is looked at but its path.
	maxStatusHeader = 8 << 10
)

// statusServer answers /healthz, /readyz, /metrics and, if there is one, the page. Nothing can be changed through it.
type statusServer struct {
	listener net.Listener
	registry *prometheus.Registry
	ready    atomic.Bool
	metrics  http.Handler // in place of the registry's own; may be nil
	page     http.Handler // for people; may be nil
	open     net.Listener // where metrics alone are served, to whoever can reach it; may be nil
}

// openMetrics serves metrics on another address too, for a Prometheus that cannot reach loopback.
func (s *statusServer) openMetrics(address string) error {
	if address == "" {
		return nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("--metrics-address: %w", err)
	}
	s.open = l
	return nil
}

// listenStatus opens the address, so that a wrong one is an error at the start. An empty one is nil: no server.
func listenStatus(address string) (*statusServer, error) {
	s := &statusServer{registry: prometheus.NewRegistry()}
	s.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if address == "" {
		return s, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--status-address: %w", err)
	}
	s.listener = l
	return s, nil
}

// run serves until ctx ends.
func (s *statusServer) run(ctx context.Context) error {
	metrics := s.metrics
	if metrics == nil {
		metrics = telemetry.Handler(s.registry)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return serveUntil(ctx, s.listener, s.handler(metrics)) })
	group.Go(func() error {
		alone := http.NewServeMux()
		alone.Handle("GET /metrics", metrics)
		return serveUntil(ctx, s.open, alone)
	})
	return group.Wait()
}

func (s *statusServer) handler(metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !s.ready.Load() {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", metrics)
	if s.page != nil {
		mux.Handle("/", s.page)
	}
	return mux
}

// serveStatus is what serves a CA's.
func serveStatus(ctx context.Context, l net.Listener, metrics prometheus.Gatherer, health http.Handler) error {
	mux := http.NewServeMux()
	mux.Handle("/", health)
	mux.Handle("GET /metrics", telemetry.Handler(metrics))
	return serveUntil(ctx, l, mux)
}

// serveUntil serves until ctx ends; nothing, without a listener.
func serveUntil(ctx context.Context, l net.Listener, h http.Handler) error {
	if l == nil {
		<-ctx.Done()
		return nil
	}
	server := &http.Server{Handler: h, ReadTimeout: statusTimeout, WriteTimeout: 2 * statusTimeout, MaxHeaderBytes: maxStatusHeader}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := newCrowd(l).serve(server); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("status server: %w", err)
	}
	return nil
}
