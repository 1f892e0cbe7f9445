package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// callTimeout bounds the work on a call. A handshake has ten seconds for TCP and ten for TLS.
	callTimeout = 30 * time.Second
	// readTimeout is how long a request may take, and writeTimeout how long work and answer together.
	readTimeout  = 5 * time.Second
	writeTimeout = callTimeout + 30*time.Second
	// endTimeout is how long the end waits for calls, whose contexts have ended by then.
	endTimeout = 5 * time.Second

	maxConnections   = 16
	maxRequestHeader = 8 << 10
	maxRequest       = 64 << 10
)

type server struct {
	version string
	log     *slog.Logger
}

// Serve answers on l until ctx ends, then waits for the calls under way, whose contexts end too. It closes l. version is
// the agent's own.
func Serve(ctx context.Context, l *Listener, node Node, version string, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &http.Server{
		Handler:     newServer(node, version, log),
		ReadTimeout: readTimeout, WriteTimeout: writeTimeout, MaxHeaderBytes: maxRequestHeader,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	var closing sync.WaitGroup
	closing.Go(func() {
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
		defer cancel()
		if s.Shutdown(end) != nil {
			_ = s.Close()
		}
	})
	err := s.Serve(&rootOnly{Listener: l, ctx: ctx, log: log, limit: rate.NewLimiter(1, 5), slots: make(chan struct{}, maxConnections)})
	if ctx.Err() != nil {
		err = nil
	}
	cancel()
	closing.Wait()
	if err = errors.Join(err, ignoreClosed(l.Close())); err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	return nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// newServer is the table of calls.
func newServer(node Node, version string, log *slog.Logger) http.Handler {
	s := &server{version: version, log: log}
	mux := http.NewServeMux()
	mux.Handle("GET "+pathCertificates, handle(s, func(ctx context.Context, _ struct{}) (*Certificates, error) {
		c, err := node.Certificates(ctx)
		if err == nil {
			c.Answer = s.answer()
		}
		return c, err
	}))
	mux.Handle("POST "+pathHandshake, handle(s, func(ctx context.Context, r handshakeRequest) (*Handshake, error) {
		if r.From == "" || r.To == "" {
			return nil, errBadRequest("from and to are missing")
		}
		h, err := node.Handshake(ctx, r.From, r.To)
		if err == nil {
			h.Answer = s.answer()
		}
		return h, err
	}))
	registerFlows(mux, s, node)
	registerReadiness(mux, s, node)
	registerBugreport(mux, s, node)
	registerStatus(mux, s, node)
	registerDescribe(mux, s, node)
	registerCan(mux, s, node)
	registerLogLevel(mux, s, node)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.write(w, http.StatusNotFound, failure{Error: fmt.Sprintf("no such call: %.100q", r.Method+" "+r.URL.Path)})
	})
	return mux
}

func (s *server) answer() Answer { return Answer{Version: s.version, Time: time.Now()} }

type errBadRequest string

// Error implements error.
func (e errBadRequest) Error() string { return string(e) }

// handle makes a call of what is asked for in JSON, or without a body.
func handle[In, Out any](s *server, call func(context.Context, In) (Out, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in In
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
		d.DisallowUnknownFields() // what is not understood is not to be half done
		if err := d.Decode(&in); err != nil && !errors.Is(err, io.EOF) {
			s.write(w, http.StatusBadRequest, failure{Error: "request: " + err.Error()})
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
		defer cancel()
		out, err := call(ctx, in)
		if err != nil {
			status, body := failureOf(err)
			s.write(w, status, body)
			return
		}
		s.write(w, http.StatusOK, out)
	})
}

func failureOf(err error) (int, failure) {
	var bad errBadRequest
	switch {
	case errors.As(err, &bad):
		return http.StatusBadRequest, failure{Error: err.Error()}
	case errors.Is(err, ErrUnknownWorkload):
		return http.StatusNotFound, failure{Error: err.Error(), Reason: reasonUnknownWorkload}
	case errors.Is(err, context.DeadlineExceeded):
		return http.StatusGatewayTimeout, failure{Error: err.Error()}
	}
	return http.StatusInternalServerError, failure{Error: err.Error()}
}

func (s *server) write(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set(versionHeader, s.version)
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		s.log.Debug("admin socket: answer not written", "error", err)
	}
}

// slotConn gives its slot back when it is closed.
type slotConn struct {
	*net.UnixConn
	slots  chan struct{}
	closed sync.Once
}

// Close implements net.Conn.
func (c *slotConn) Close() error {
	c.closed.Do(func() { <-c.slots })
	return c.UnixConn.Close()
}
