package agent

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/observe"
)

const (
	// toldTime is how long a tunnel may take to tell of a connection that is over.
	toldTime = time.Second
	// settleTime is how long a tunnel may take to tell of one that it took over: that is made before the far side was asked,
	// for which the tunnel has 25 seconds.
	settleTime = 26*time.Second - watchTime
)

// tunnelled reports whether the client's tunnel takes the connection over, whatever it then does with it.
func (i inspector) tunnelled(ctx context.Context, q *question, to netip.AddrPort) (bool, error) {
	if q.from == nil || q.from.enrolled == nil || i.agent.observer == nil || slices.Contains(q.from.pod.Addresses, to.Addr()) {
		return false, nil
	}
	captured := false
	err := i.inspect(ctx, func(a *Agent) error {
		_, captured = a.outside[to.Addr()]
		captured = captured || inRanges(a.ranges(), to.Addr())
		return nil
	})
	return captured, err
}

// settle waits until the tunnel tells what has become of the connection, or the far side ends it. Silence is no success.
func (i inspector) settle(ctx context.Context, fd int, t *admin.Trial, after uint64) {
	begin, spoke := time.Now(), false
	defer func() { t.Watched += time.Since(begin) }()
	for until := begin.Add(settleTime); time.Now().Before(until) && ctx.Err() == nil; {
		events, last, _ := i.agent.observer.memory.Events(after)
		if seen(t, events, true) {
			return
		}
		after = last
		outcome, said, err := watch(ctx, fd, time.Now().Add(pollStep))
		if outcome != admin.TrialConnected {
			t.Outcome = outcome
			if err != nil {
				t.Error = err.Error()
			}
			return
		}
		if spoke = spoke || said; said {
			time.Sleep(pollStep) // there may be more of it
		}
	}
	if !spoke && ctx.Err() == nil {
		t.Outcome, t.Error = admin.TrialTimeout, "the tunnel took it, and has not said that it reached anybody"
	}
}

// look adds what this node has seen of the trial: its tunnel if that carried it, its kernel if that refused it.
func (i inspector) look(ctx context.Context, q *question, t *admin.Trial, after uint64) {
	carried := q.from != nil && q.from.enrolled != nil
	here := slices.ContainsFunc(q.verdict.Endpoints, func(e admin.EndpointVerdict) bool { return e.Node == i.agent.Node })
	if i.agent.observer == nil || !carried && !here {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, toldTime)
	defer cancel()
	for {
		events, last, _, err := i.agent.observer.memory.Wait(ctx, after)
		if seen(t, events, carried) || err != nil || ctx.Err() != nil {
			return
		}
		after = last
	}
}

// seen takes over what is told of the trial. Of what the near side carries, its account counts.
func seen(t *admin.Trial, events []observe.Event, carried bool) bool {
	local, err := netip.ParseAddrPort(t.Local)
	if err != nil {
		return false
	}
	for n := range events {
		e := &events[n]
		of := e.Source.Address.Unmap() == local.Addr().Unmap() && e.Source.Port == local.Port()
		if of && (!e.Inbound || !carried) {
			t.Carried, t.Reason = string(e.Carried), e.Reason
			return true
		}
	}
	return false
}
