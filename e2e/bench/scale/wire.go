package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// watchers are watches of all pods, each over a connection of its own, as the agents of other nodes keep one. What
// they receive is counted and dropped.
type watchers struct {
	cluster *cluster
	cancel  context.CancelFunc
	running sync.WaitGroup
	events  atomic.Int64 // of all of them
	payload atomic.Int64 // bytes of events
	ended   atomic.Int64 // watches that the API server ended
	wire    atomic.Int64 // bytes that came in, with all that TLS and HTTP/2 add

	mu     sync.Mutex
	failed error
}

// startWatchers opens count watches and returns when each of them stands.
func startWatchers(ctx context.Context, c *cluster, count int) (*watchers, error) {
	ctx, cancel := context.WithCancel(ctx)
	w := &watchers{cluster: c, cancel: cancel}
	for range count {
		transport, err := w.transport()
		if err != nil {
			return nil, errors.Join(err, w.stop())
		}
		body, err := w.open(ctx, transport)
		if err != nil {
			return nil, errors.Join(err, w.stop())
		}
		w.running.Go(func() { w.follow(ctx, transport, body) })
	}
	w.events.Store(0)
	w.payload.Store(0)
	w.wire.Store(0)
	return w, nil
}

// stop ends the watches and waits for them.
func (w *watchers) stop() error {
	w.cancel()
	w.running.Wait()
	return w.failed
}

// follow reads a watch. One that the API server ends, because its reader was too slow perhaps, is opened again.
func (w *watchers) follow(ctx context.Context, transport *http.Transport, body io.ReadCloser) {
	defer transport.CloseIdleConnections()
	for {
		w.count(body)
		body.Close()
		if ctx.Err() != nil {
			return
		}
		w.ended.Add(1)
		var err error
		if body, err = w.open(ctx, transport); err != nil {
			w.mu.Lock()
			defer w.mu.Unlock()
			if ctx.Err() == nil {
				w.failed = errors.Join(w.failed, err)
			}
			return
		}
	}
}

// transport is a connection of its own.
func (w *watchers) transport() (*http.Transport, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(w.cluster.roots) {
		return nil, errors.New("watch: no certificate of the API server")
	}
	return &http.Transport{
		ForceAttemptHTTP2: true, DisableCompression: true, TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := w.cluster.place.dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return countingConn{conn, &w.wire}, nil
		},
	}, nil
}

// open begins a watch at the version of the moment.
func (w *watchers) open(ctx context.Context, transport *http.Transport) (io.ReadCloser, error) {
	list, err := w.cluster.core.CoreV1().Pods("").List(ctx, meta.ListOptions{Limit: 1})
	if err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	query := url.Values{"watch": {"true"}, "resourceVersion": {list.ResourceVersion}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, apiAddress+"/api/v1/pods?"+query.Encode(), nil)
	if err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	request.Header.Set("Authorization", "Bearer "+w.cluster.token)
	request.Header.Set("Accept", "application/vnd.kubernetes.protobuf;stream=watch")
	answer, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	if answer.StatusCode != http.StatusOK {
		answer.Body.Close()
		return nil, fmt.Errorf("watch: %s", answer.Status)
	}
	return answer.Body, nil
}

// count reads frames until there are no more: four bytes with the length, then an event.
func (w *watchers) count(body io.Reader) {
	frames := bufio.NewReaderSize(body, 64<<10)
	for {
		var head [4]byte
		if _, err := io.ReadFull(frames, head[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint32(head[:]))
		if _, err := frames.Discard(n); err != nil {
			return
		}
		w.events.Add(1)
		w.payload.Add(int64(n))
	}
}

type countingConn struct {
	net.Conn
	read *atomic.Int64
}

// Read implements net.Conn.
func (c countingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.read.Add(int64(n))
	return n, err
}
