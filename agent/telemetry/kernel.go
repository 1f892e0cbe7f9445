package telemetry

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/agent/datapath"
	"github.com/culvert-mesh/culvert/policy"
)

const (
	// readAgain is how old what was read of whole maps may be: scrapes do not set the pace.
	readAgain = 5 * time.Second
	// plaintextWindow is how long a peer counts after its last plaintext connection.
	plaintextWindow = 5 * time.Minute
)

// Kernel is what is read of the BPF maps.
type Kernel interface {
	Counters() (map[string]uint64, error)
	Connections() (map[datapath.ConnectionKind]uint64, error)
	Fill() ([]datapath.Fill, error)
	Plaintext() ([]datapath.PlaintextCount, error)
}

// kernelReader reads whole maps now and then.
type kernelReader struct {
	Kernel
	fill   cached[[]datapath.Fill]
	counts cached[map[endpoint]int]
}

func (k *kernelReader) fills(now time.Time) ([]datapath.Fill, error) {
	return k.fill.get(now, k.Fill)
}

// endpoint is a port of a workload.
type endpoint struct {
	cookie uint64
	port   uint16
}

// plaintext returns how many peers opened plaintext connections within the window.
func (k *kernelReader) plaintext(now time.Time) (map[endpoint]int, error) {
	return k.counts.get(now, func() (map[endpoint]int, error) {
		all, err := k.Plaintext()
		if err != nil {
			return nil, err
		}
		var clock unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &clock); err != nil {
			return nil, err
		}
		peers := map[endpoint]int{}
		for _, c := range all {
			if time.Duration(clock.Nano())-time.Duration(c.LastNanoseconds) < plaintextWindow {
				peers[endpoint{c.Cookie, c.Port}]++
			}
		}
		return peers, nil
	})
}

// cached is something that takes a while to read.
type cached[T any] struct {
	mu    sync.Mutex
	at    time.Time
	value T
	err   error
}

func (c *cached[T]) get(now time.Time, read func() (T, error)) (T, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at.IsZero() || now.Sub(c.at) >= readAgain {
		c.at = now
		c.value, c.err = read()
	}
	return c.value, c.err
}

// modeLabel is none where there is no mode.
func modeLabel(m policy.Mode) string {
	if m == policy.Unset {
		return "none"
	}
	return m.String()
}

func collectConnections(out chan<- prometheus.Metric, all map[datapath.ConnectionKind]uint64) {
	for kind, n := range all {
		out <- connections.with(float64(n), modeLabel(kind.Mode), kind.Outcome)
	}
}

func collectEvents(out chan<- prometheus.Metric, events map[string]uint64) {
	for name, n := range events {
		out <- kernelEvents.with(float64(n), name)
	}
}

func collectFills(out chan<- prometheus.Metric, fills []datapath.Fill) {
	for _, f := range fills {
		out <- mapEntries.with(float64(f.Entries), f.Map)
		out <- mapMaxEntries.with(float64(f.Max), f.Map)
	}
}
