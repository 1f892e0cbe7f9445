package telemetry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	benchPods  = 250
	benchPeers = 100
)

func fill(traffic *Traffic) {
	for pod := range benchPods {
		for peer := range benchPeers {
			// Every connection brings strings of its own.
			source := fmt.Sprintf("spiffe://cluster.local/ns/namespace-%d/sa/service-account-%d", pod%20, pod)
			destination := fmt.Sprintf("spiffe://cluster.local/ns/namespace-%d/sa/service-account-of-a-peer-%d", peer%20, pod*benchPeers+peer)
			traffic.Open(named(source, destination, fmt.Sprintf("deployment-%d", pod), fmt.Sprintf("deployment-of-a-peer-%d", pod*benchPeers+peer))).
				Transferred(123456789, 987654321)
		}
	}
}

// named are labels of which all are known; Deployments, applications and Services differ in their names.
func named(source, destination, from, to string) Labels {
	l := labels(source, destination)
	name := func(p *Party, workload string) {
		p.Workload, p.Application, p.Revision, p.Cluster = workload, "app-of-"+workload, "version-1", "Kubernetes"
	}
	name(&l.Source, from)
	name(&l.Destination, to)
	l.Destination.Service = Service{Name: "service-of-" + to, Namespace: l.Destination.Namespace, Domain: "cluster.local"}
	return l
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestSize: 250 pods that have talked to 100 peers each, no two the same, take no more than 30 MB, with more readers at
// one time than the servers let in, all of whom have stopped reading in the middle.
func TestSize(t *testing.T) {
	const readers = 64
	m := New()
	before := heap()
	fill(&m.Traffic)
	held := heap() - before
	handler := m.Handler(prometheus.NewRegistry())
	ctx, cancel := context.WithCancel(t.Context())
	stalled := &stalledReader{arrived: make(chan struct{}, readers), free: make(chan struct{})}
	var served sync.WaitGroup
	for range readers {
		served.Go(func() {
			r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/metrics", nil)
			r.Header.Set("Accept-Encoding", "gzip")
			defer func() { _ = recover() }() // as a server does: it is cut off in the end
			handler.ServeHTTP(stalled, r)
		})
		<-stalled.arrived
	}
	all := heap() - before
	t.Logf("%.1f MB held, %.1f MB more for %d readers", float64(held)/1e6, float64(all-held)/1e6, readers)
	if all > 30e6 {
		t.Errorf("%d bytes held, %d with readers; want 30 MB at most", held, all)
	}
	cancel()
	close(stalled.free)
	served.Wait()
	runtime.KeepAlive(m)
}

// stalledReader takes nothing until it is free, and then says that it has gone.
type stalledReader struct {
	httptest.ResponseRecorder
	arrived, free chan struct{}
}

func (s *stalledReader) Header() http.Header { return http.Header{} }

func (s *stalledReader) Write([]byte) (int, error) {
	s.arrived <- struct{}{}
	<-s.free
	return 0, io.ErrClosedPipe
}

// BenchmarkScrape gets 25,000 series of each metric over HTTP.
func BenchmarkScrape(b *testing.B) {
	m := New()
	fill(&m.Traffic)
	registry := prometheus.NewRegistry()
	registry.MustRegister(m)
	server := httptest.NewServer(m.Handler(registry))
	defer server.Close()
	for _, encoding := range []string{"identity", "gzip"} {
		b.Run(encoding, func(b *testing.B) {
			var size int64
			b.ReportAllocs()
			for b.Loop() {
				r, _ := http.NewRequest(http.MethodGet, server.URL, nil)
				r.Header.Set("Accept-Encoding", encoding)
				answer, err := http.DefaultClient.Do(r)
				if err != nil {
					b.Fatal(err)
				}
				if size, err = io.Copy(io.Discard, answer.Body); err != nil {
					b.Fatal(err)
				}
				_ = answer.Body.Close()
			}
			b.ReportMetric(float64(size)/1e6, "MB/scrape")
		})
	}
}

// BenchmarkConnection is what one connection is counted.
func BenchmarkConnection(b *testing.B) {
	var traffic Traffic
	fill(&traffic)
	l := named("spiffe://cluster.local/ns/namespace-1/sa/service-account-1", "spiffe://cluster.local/ns/namespace-1/sa/service-account-of-a-peer-101",
		"deployment-1", "deployment-of-a-peer-101")
	b.ReportAllocs()
	for b.Loop() {
		s := traffic.Open(l)
		s.Transferred(1, 2)
		traffic.Close(s)
	}
}
