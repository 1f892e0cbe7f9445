package tunnel

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/culvert-mesh/culvert/tunnel/control"
)

// TestFlowsAreBounded: what finds no room is lost and counted, and the agent is told how much.
func TestFlowsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lost atomic.Uint64
		f := newFlows(&lost)
		for i := range flowsQueued + 10 {
			f.report(&control.Flow{Number: uint64(i)})
		}
		ctx, cancel := context.WithCancel(t.Context())
		go f.run(ctx)
		next, told := uint64(0), uint64(0)
		for next < flowsQueued {
			batch := (<-f.batches).GetFlows()
			if len(batch.GetFlows()) != flowsAtOnce {
				t.Fatalf("%d flows in a message", len(batch.GetFlows()))
			}
			for _, flow := range batch.GetFlows() {
				if flow.GetNumber() != next {
					t.Fatalf("flow %d, want %d", flow.GetNumber(), next)
				}
				next++
			}
			told += batch.GetLost()
		}
		cancel()
		synctest.Wait()
		if told != 10 || lost.Load() != 10 {
			t.Errorf("told of %d, counted %d, want 10 lost", told, lost.Load())
		}
	})
}

// TestFlowsFitAMessage: however long the names are.
func TestFlowsFitAMessage(t *testing.T) {
	f := newFlows(new(atomic.Uint64))
	for range flowsAtOnce {
		f.report(&control.Flow{SourceIdentity: string(make([]byte, 4<<10)), Reason: clip(string(make([]byte, 4<<10)))})
	}
	if batch := f.take(); len(batch) >= flowsAtOnce || len(batch)*(4<<10) > control.MaxMessage {
		t.Errorf("%d flows", len(batch))
	}
}

// TestFlowsComeLast: the agent hears everything else first.
func TestFlowsComeLast(t *testing.T) {
	f := newFlows(new(atomic.Uint64))
	f.batches = make(chan *control.FromTunnel, 1)
	f.batches <- &control.FromTunnel{Message: &control.FromTunnel_Flows{}}
	s := &session{outbox: make(chan *control.FromTunnel, 100)}
	for range 100 {
		s.post(&control.FromTunnel{Message: &control.FromTunnel_NeedSockets{}})
	}
	for i := range 100 {
		if _, flow := s.next(t.Context(), f).GetMessage().(*control.FromTunnel_Flows); flow {
			t.Fatalf("a flow was sent before %d other messages", 100-i)
		}
	}
	if _, flow := s.next(t.Context(), f).GetMessage().(*control.FromTunnel_Flows); !flow {
		t.Error("the flow was not sent")
	}
}

func TestClip(t *testing.T) {
	if got := clip(string([]byte{'a', 0xff, 'b'})); got != "a?b" {
		t.Errorf("got %q", got)
	}
	if got := len(clip(string(make([]byte, 1000)))); got != flowText {
		t.Errorf("%d bytes", got)
	}
}

func TestHandshakeFailure(t *testing.T) {
	tests := map[string]error{
		"timeout":         context.DeadlineExceeded,
		"no_certificate":  errors.Join(errors.New("x"), errNoCertificate),
		"own_expired":     errExpired,
		"peer_untrusted":  &peerError{errExpired, "peer_untrusted"}, // it is the peer's
		"peer_unexpected": &peerError{errors.New("x"), "peer_unexpected"},
		"other":           errors.New("x"),
	}
	for want, err := range tests {
		if got := handshakeFailure(err); got != want {
			t.Errorf("%v: got %s, want %s", err, got, want)
		}
	}
}
