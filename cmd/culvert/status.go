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
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	statusTimeout = 5 * time.Second
	// maxStatusHeader bounds a request: nothing in it is looked at but its path.
	maxStatusHeader = 8 << 10
)

// statusServer answers /healthz, /readyz and /metrics, and nothing else.
type statusServer struct {
	listener net.Listener
	registry *prometheus.Registry
	ready    atomic.Bool
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
	if s.listener == nil {
		<-ctx.Done()
		return nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !s.ready.Load() {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 2, Timeout: statusTimeout}))
	server := &http.Server{Handler: mux, ReadTimeout: statusTimeout, WriteTimeout: 2 * statusTimeout, MaxHeaderBytes: maxStatusHeader}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("status server: %w", err)
	}
	return nil
}
