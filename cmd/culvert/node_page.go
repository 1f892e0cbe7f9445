package main

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/culvert-mesh/culvert/agent/nodepage"
)

// startingSource is what the node page is made of, from the moment on at which the agent can tell.
type startingSource struct {
	started atomic.Pointer[nodepage.Source]
}

func (s *startingSource) start(source nodepage.Source) { s.started.Store(&source) }

// Page implements nodepage.Source.
func (s *startingSource) Page(ctx context.Context) (nodepage.Page, error) {
	source := s.started.Load()
	if source == nil {
		return nodepage.Page{}, errors.New("the agent is starting")
	}
	return (*source).Page(ctx)
}
