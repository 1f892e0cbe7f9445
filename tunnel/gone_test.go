package tunnel

import (
	"context"
	"testing"
	"time"
)

// TestGoneWorkloadEndsOnce: what its peers are connected to learns of the end, and a second end is none.
func TestGoneWorkloadEndsOnce(t *testing.T) {
	tn := newTunnel(t.Context(), t.Context(), Options{AgentGrace: time.Nanosecond})
	old, fresh := tn.newWorkload(1), tn.newWorkload(2)
	old.announced, fresh.announced = 1, 2
	for _, w := range []*workload{old, fresh} {
		w.spec.Store(&spec{name: "default/pod"})
		tn.workloads[w.id] = w
	}
	tn.forgetOthers(context.Background(), 2)
	tn.forget(1)
	old.close()
	select {
	case <-old.ended:
	default:
		t.Error("the workload that was not announced has not ended")
	}
	select {
	case <-fresh.ended:
		t.Error("the announced workload has ended")
	default:
	}
	if tn.workload(1) != nil || tn.workload(2) == nil {
		t.Error("the wrong workload was dropped")
	}
}
