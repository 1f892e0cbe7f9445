package identity

import (
	"log/slog"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// BenchmarkTenThousandIdentities tells what an agent with so many identities holds in memory for them, keys and
// certificates included, and how long they take to be issued by a CA in the same process.
func BenchmarkTenThousandIdentities(b *testing.B) {
	const identities = 10_000
	for b.Loop() {
		b.StopTimer()
		issuer := inProcess(b, 24*time.Hour)
		before := memoryInUse()
		var told atomic.Int64
		all := make(chan struct{})
		k := NewKeeper(issuer, slog.New(slog.DiscardHandler), func(spiffeid.ID) {
			if told.Add(1) == identities {
				close(all)
			}
		})
		b.StartTimer()
		for i := range identities {
			k.Use(pod(i))
		}
		<-all
		b.StopTimer()
		after := memoryInUse()
		b.ReportMetric(float64(after-before)/(1<<20), "MiB")
		b.ReportMetric(float64(after-before)/identities, "B/identity")
		k.Close()
		b.StartTimer()
	}
}

// memoryInUse is what is in use, goroutines' stacks included, after garbage was collected.
func memoryInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}
