package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/culvert-mesh/culvert/agent/enroll/cni"
)

const (
	firstPause = 20 * time.Millisecond
	// lastPause bounds how long a pod waits for an agent that is back already.
	lastPause = 500 * time.Millisecond
)

// ask asks the agent until it answers or ctx ends: an agent that is being restarted is back within seconds. The
// error is the agent's (*cni.Error) if it said no; see noAnswer for the others.
func ask(ctx context.Context, socket string, r *cni.Request, netns *os.File) (*cni.Response, error) {
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		answer, err := cni.Call(ctx, socket, r, netns)
		if err == nil && answer.Error == nil {
			return answer, nil
		}
		if err == nil {
			err = answer.Error
		}
		if !again(err) {
			return nil, err
		}
		// Pods that wait for the same agent do not come back all at once.
		t := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, fmt.Errorf("%w: %w", errNoTime, err)
		}
	}
}

var errNoTime = errors.New("time is up")

// again reports whether asking again may help.
func again(err error) bool {
	var answered *cni.Error
	return errors.Is(err, cni.ErrAway) || errors.As(err, &answered) && answered.Retry
}

// noAnswer reports whether there was no agent that could have answered: it is away, or says that it is not ready.
func noAnswer(err error) bool {
	var answered *cni.Error
	return errors.Is(err, cni.ErrAway) || errors.As(err, &answered) && answered.Retry && answered.Code == cni.CodeUnavailable
}

// cniError turns an error into one that the runtime understands.
func cniError(err error) error {
	var answered *cni.Error
	if errors.As(err, &answered) {
		return types.NewError(answered.Code, "culvert-cni: "+answered.Msg, answered.Details)
	}
	return types.NewError(types.ErrInternal, "culvert-cni: agent cannot be asked", err.Error())
}
