package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"
	"time"
)

// target is something that can be asked whether it answers.
type target struct {
	url     *url.URL
	timeout time.Duration
	client  *http.Client
}

// newTarget takes http://HOST:PORT/PATH, or tcp://HOST:PORT for a port that sends back what it receives. Without
// keepAlive every try makes a connection of its own.
func newTarget(address string, timeout time.Duration, keepAlive bool) (*target, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "tcp") {
		return nil, fmt.Errorf("--url %q: not http://HOST:PORT/PATH or tcp://HOST:PORT: %w", address, errUsage)
	}
	transport := &http.Transport{DisableKeepAlives: !keepAlive, DialContext: (&net.Dialer{}).DialContext}
	return &target{url: u, timeout: timeout, client: &http.Client{Transport: transport}}, nil
}

// try asks once and returns what was answered.
func (t *target) try(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	if t.url.Scheme == "tcp" {
		return t.tryTCP(ctx)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, t.url.String(), nil)
	if err != nil {
		return nil, err
	}
	response, err := t.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	const most = 1 << 20
	body, err := io.ReadAll(io.LimitReader(response.Body, most))
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return body, fmt.Errorf("status %s", response.Status)
	}
	return body, nil
}

func (t *target) tryTCP(ctx context.Context) ([]byte, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", t.url.Host)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	sent := []byte("ping\n")
	if _, err := conn.Write(sent); err != nil {
		return nil, err
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(conn, got); err != nil {
		return nil, err
	}
	if !bytes.Equal(sent, got) {
		return got, fmt.Errorf("sent %q, got back %q", sent, got)
	}
	return got, nil
}

// reason is a short name for an error, so that equal failures can be counted: an address would make each its own.
func reason(err error) string {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return "name not resolved"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ECONNRESET):
		return "connection reset"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed without an answer"
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		return op.Err.Error()
	}
	return err.Error()
}
