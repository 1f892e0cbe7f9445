package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	statusTimeout  = 5 * time.Second
	maxStatusBytes = 16 << 10
)

// condition is something that must hold before the CA can serve; it says what is missing, or "".
type condition func() (missing string)

// serveStatus answers /healthz as long as the process lives, and /readyz once all conditions hold.
func serveStatus(ctx context.Context, l net.Listener, m *metrics, ready []condition) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		var missing []string
		for _, c := range ready {
			if s := c(); s != "" {
				missing = append(missing, s)
			}
		}
		if len(missing) > 0 {
			http.Error(w, strings.Join(missing, "\n"), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	s := &http.Server{Handler: mux, ReadTimeout: statusTimeout, WriteTimeout: statusTimeout,
		IdleTimeout: time.Minute, MaxHeaderBytes: maxStatusBytes}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("status server: %w", err)
	}
	return nil
}
