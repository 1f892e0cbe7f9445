package spiffe

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/spiffe/spiffetest"
)

// TestManyIdentities has a stream for each on one connection, renews all of them at once and then ends one watch
// after the other.
func TestManyIdentities(t *testing.T) {
	const within = 5 * time.Minute
	both(t, func(t *testing.T, a *spiffetest.Agent, service string) {
		pods := make([]identity.Workload, many)
		answers := func() map[string]spiffetest.Answer {
			all := map[string]spiffetest.Answer{}
			for i := range pods {
				pods[i] = pod(fmt.Sprint("p", i))
				all[pods[i].UID] = only(a.Mint(pods[i].ID))
			}
			return all
		}
		a.GiveAll(answers())
		p := quick()
		p.open = within
		c, _ := client(t, a, p, service)
		before := heap()
		start := time.Now()
		var got, wrong atomic.Int64
		ctx, stop := context.WithCancel(context.Background())
		var done sync.WaitGroup
		t.Cleanup(func() { stop(); done.Wait() })
		for _, w := range pods {
			done.Go(func() {
				err := c.Watch(ctx, w, func(s *identity.SVID) {
					if s.ID != w.ID {
						wrong.Add(1)
					}
					got.Add(1)
				})
				if ctx.Err() == nil {
					t.Errorf("watch ended: %v", err)
				}
			})
		}
		reach := func(n int64) {
			t.Helper()
			for end := time.Now().Add(within); got.Load() < n; time.Sleep(10 * time.Millisecond) {
				if t.Failed() || time.Now().After(end) {
					t.Fatalf("%d SVIDs of %d", got.Load(), n)
				}
			}
		}
		reach(int64(many))
		t.Logf("%d first SVIDs after %s; client and fake together use %d KiB for each", many,
			time.Since(start).Round(time.Millisecond), (heap()-before)/uint64(many)>>10)
		renewed := answers()
		start = time.Now()
		a.GiveAll(renewed)
		reach(2 * int64(many))
		t.Logf("all renewed after %s", time.Since(start).Round(time.Millisecond))
		if n := a.Opened(service); n != many || got.Load() != 2*int64(many) || wrong.Load() != 0 {
			t.Errorf("%d streams, %d SVIDs, %d of them for another; want %d, %d and none", n, got.Load(), wrong.Load(), many, 2*many)
		}
		stop()
		eventually(t, "end of all streams", func() bool { return a.Streams() == 0 })
	})
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// TestFewAreOpenedAtOnce counts the streams that wait for their first answer.
func TestFewAreOpenedAtOnce(t *testing.T) {
	a := spiffetest.Start(t, domain())
	all := map[string]spiffetest.Answer{}
	for i := range 3 * maxOpening {
		w := pod(fmt.Sprint("p", i))
		all[w.UID] = only(a.Mint(w.ID))
	}
	a.GiveAll(all)
	a.Delay(time.Hour)
	p := quick()
	p.open = time.Hour
	c, _ := client(t, a, p, spiffetest.Delegated)
	for i := range 3 * maxOpening {
		watch(t, c, pod(fmt.Sprint("p", i)))
	}
	eventually(t, "full", func() bool { return a.Streams() == maxOpening })
	time.Sleep(calm)
	if n := a.Opened(spiffetest.Delegated); n != maxOpening {
		t.Errorf("%d streams are waiting, want %d", n, maxOpening)
	}
}
