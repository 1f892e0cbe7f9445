package telemetry

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
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
			traffic.Open(labels(source, destination)).Transferred(123456789, 987654321)
		}
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestSize: 250 pods that have talked to 100 peers each, no two the same, take no more than 30 MB, scrapes included.
func TestSize(t *testing.T) {
	var traffic Traffic
	before := heap()
	fill(&traffic)
	held := heap() - before
	var during, after runtime.MemStats
	runtime.ReadMemStats(&during)
	if err := traffic.WriteText(io.Discard); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	scrape := after.TotalAlloc - during.TotalAlloc
	t.Logf("%.1f MB held, %.1f MB more for a scrape", float64(held)/1e6, float64(scrape)/1e6)
	if held+scrape > 30e6 {
		t.Errorf("%d bytes held, %d for a scrape; want 30 MB at most", held, scrape)
	}
	runtime.KeepAlive(&traffic)
}

// BenchmarkScrape gets 25,000 series of each metric over HTTP.
func BenchmarkScrape(b *testing.B) {
	m := New()
	fill(&m.Traffic)
	registry := prometheus.NewRegistry()
	registry.MustRegister(m)
	server := httptest.NewServer(m.Handler(registry))
	defer server.Close()
	var size int64
	b.ReportAllocs()
	for b.Loop() {
		answer, err := http.Get(server.URL)
		if err != nil {
			b.Fatal(err)
		}
		if size, err = io.Copy(io.Discard, answer.Body); err != nil {
			b.Fatal(err)
		}
		_ = answer.Body.Close()
	}
	b.ReportMetric(float64(size)/1e6, "MB/scrape")
}

// BenchmarkConnection is what one connection is counted.
func BenchmarkConnection(b *testing.B) {
	var traffic Traffic
	fill(&traffic)
	source, destination := "spiffe://cluster.local/ns/namespace-1/sa/service-account-1", "spiffe://cluster.local/ns/namespace-1/sa/service-account-of-a-peer-101"
	b.ReportAllocs()
	for b.Loop() {
		s := traffic.Open(labels(source, destination))
		s.Transferred(1, 2)
		traffic.Close(s)
	}
}
