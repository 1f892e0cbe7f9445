package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"syscall"
	"time"
)

// markerHeader carries a request's marker, a string that exists nowhere else; the server sends it back.
const markerHeader = "X-Culvert-Marker"

// Answer is what the server in a pod answers.
type Answer struct {
	Server string `json:"server"` // who answers
	Client string `json:"client"` // the caller's address and port, as the server's socket has it
	Marker string `json:"marker"`
}

// Attempt is the outcome of one request.
type Attempt struct {
	OK        bool          `json:"ok"`
	Status    int           `json:"status,omitempty"`
	Error     string        `json:"error,omitempty"`
	Errno     string        `json:"errno,omitempty"` // ECONNREFUSED, ECONNRESET, timeout, …
	Connected bool          `json:"connected"`       // the connect call itself succeeded
	Local     string        `json:"local,omitempty"` // the client's own address and port
	Latency   time.Duration `json:"latency"`
	Answer    Answer        `json:"answer"`
}

// Serve answers HTTP on every address given until ctx ends.
func Serve(ctx context.Context, name string, listen []string) error {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(Answer{Server: name, Client: r.RemoteAddr, Marker: r.Header.Get(markerHeader)})
	})
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, len(listen))
	for _, address := range listen {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return fmt.Errorf("workload %s: %w", name, errors.Join(err, server.Close()))
		}
		go func() { ended <- server.Serve(l) }()
	}
	fmt.Println("ready")
	var first error
	for range listen {
		select {
		case err := <-ended:
			first = errors.Join(first, err, server.Close())
		case <-ctx.Done():
			return server.Close()
		}
	}
	return first
}

// Request makes one request on a connection of its own.
func Request(ctx context.Context, url, marker string, timeout time.Duration) Attempt {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	return get(ctx, &http.Client{Transport: transport}, url, marker)
}

// Hold opens one connection, makes a request on it every interval, and writes each outcome to out as a
// line. It returns after the first failure, or when ctx ends. It never opens a second connection.
func Hold(ctx context.Context, url, marker string, interval time.Duration, out io.Writer) error {
	opened := false
	transport := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		if opened {
			return nil, fmt.Errorf("the connection was closed: %w", syscall.ECONNRESET)
		}
		opened = true
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 3 * time.Second}
	lines := json.NewEncoder(out)
	for {
		attempt := get(ctx, client, url, marker)
		if ctx.Err() != nil {
			return nil
		}
		if err := lines.Encode(attempt); err != nil {
			return fmt.Errorf("write outcome: %w", err)
		}
		if !attempt.OK {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(interval):
		}
	}
}

func get(ctx context.Context, client *http.Client, url, marker string) (a Attempt) {
	trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		a.Connected, a.Local = true, i.Conn.LocalAddr().String()
	}}
	begin := time.Now()
	defer func() { a.Latency = time.Since(begin) }()
	request, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), http.MethodGet, url, nil)
	if err != nil {
		a.Error = err.Error()
		return a
	}
	request.Header.Set(markerHeader, marker)
	response, err := client.Do(request)
	if err != nil {
		a.Error, a.Errno = err.Error(), errnoOf(err)
		return a
	}
	defer response.Body.Close()
	a.Status = response.StatusCode
	if err := json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&a.Answer); err != nil {
		a.Error, a.Errno = "read answer: "+err.Error(), errnoOf(err)
		return a
	}
	_, _ = io.Copy(io.Discard, response.Body) // so that the connection can be used again
	a.OK = response.StatusCode == http.StatusOK && a.Answer.Marker == marker
	if !a.OK {
		a.Error = fmt.Sprintf("unexpected answer: status %d, marker %q", response.StatusCode, a.Answer.Marker)
	}
	return a
}

// errnoOf names the system error that the caller of a plain socket would have seen.
func errnoOf(err error) string {
	var errno syscall.Errno
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	case errors.As(err, &errno):
		if name, ok := map[syscall.Errno]string{
			syscall.ECONNREFUSED: "ECONNREFUSED", syscall.ECONNRESET: "ECONNRESET", syscall.ECONNABORTED: "ECONNABORTED",
			syscall.EHOSTUNREACH: "EHOSTUNREACH", syscall.ENETUNREACH: "ENETUNREACH", syscall.EPIPE: "EPIPE",
			syscall.ETIMEDOUT: "ETIMEDOUT", syscall.EPERM: "EPERM",
		}[errno]; ok {
			return name
		}
		return errno.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "EOF"
	}
	return ""
}
