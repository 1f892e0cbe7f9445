package tunnel

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/tunnel/control"
)

const (
	flowsQueued  = 4096 // also while there is no agent
	flowsAtOnce  = 64   // in a message
	flowsMessage = control.MaxMessage / 2
	flowsEvery   = 200 * time.Millisecond
	flowText     = 256 // bytes of a reason
)

// flows are reports about connections on their way to the agent. They wait for everything else that it is to be told.
type flows struct {
	number  atomic.Uint64
	lost    *atomic.Uint64
	queue   chan *control.Flow
	batches chan *control.FromTunnel // to the session, which takes one when it has nothing better to do
}

func newFlows(lost *atomic.Uint64) *flows {
	return &flows{lost: lost, queue: make(chan *control.Flow, flowsQueued), batches: make(chan *control.FromTunnel)}
}

// report queues a flow, or counts it as lost. It never blocks.
func (f *flows) report(flow *control.Flow) {
	select {
	case f.queue <- flow:
	default:
		f.lost.Add(1)
	}
}

// run makes messages of what is queued.
func (f *flows) run(ctx context.Context) {
	tick := time.NewTicker(flowsEvery)
	defer tick.Stop()
	told := uint64(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for len(f.queue) > 0 {
			lost := f.lost.Load()
			batch := &control.Flows{Flows: f.take(), Lost: lost - told}
			select {
			case <-ctx.Done():
				return
			case f.batches <- &control.FromTunnel{Message: &control.FromTunnel_Flows{Flows: batch}}:
				told = lost
			}
		}
	}
}

func (f *flows) take() (batch []*control.Flow) {
	for size := 0; len(batch) < flowsAtOnce && size < flowsMessage; {
		select {
		case flow := <-f.queue:
			batch = append(batch, flow)
			size += proto.Size(flow)
		default:
			return batch
		}
	}
	return batch
}
