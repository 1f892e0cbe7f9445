package kube

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// verdict is an answer to the question whether Culvert is being uninstalled.
type verdict int

const (
	unknown verdict = iota // nobody answers, or not that
	stays                  // it is not
	missing                // the DaemonSet is gone, or about to be; it may be made anew
	over                   // it is
)

// Confirmed asks the API server whether Culvert is being uninstalled, and closes Uninstalling if it is. It answers
// within a second as long as the DaemonSet stands, or when nothing points to an uninstall and nobody answers. Where the
// DaemonSet is gone it waits some seconds for one that is made anew. It needs neither Run nor WatchUninstall.
func (s *Source) Confirmed(ctx context.Context) bool {
	return s.uninstall.set != nil && s.uninstall.confirm(ctx) == over
}

// confirm answers with anything but missing.
func (u *uninstall) confirm(ctx context.Context) verdict {
	ctx, cancel := context.WithTimeout(ctx, u.pace.limit)
	defer cancel()
	select {
	case u.turn <- struct{}{}:
		defer func() { <-u.turn }()
	case <-u.begun:
		return over
	case <-ctx.Done():
		return unknown
	}
	var since time.Time // it is missing
	for ctx.Err() == nil {
		if u.isBegun() {
			return over
		}
		v := u.askSet
		if since.IsZero() {
			v = u.askAll
		}
		switch v(ctx) {
		case stays:
			if !since.IsZero() {
				u.log.Info("the agent's DaemonSet was made anew: Culvert stays")
			}
			return stays
		case over:
			u.begin("the agent's DaemonSet or its namespace is deleted")
			return over
		case missing:
			if since.IsZero() {
				since = time.Now()
				u.log.Info("the agent's DaemonSet is gone: Culvert leaves this node unless it is made anew", "wait", u.pace.settle)
			}
			if time.Since(since) >= u.pace.settle {
				u.begin("the agent's DaemonSet is gone")
				return over
			}
		case unknown:
			if since.IsZero() && u.seen() != deletion {
				return unknown
			}
		}
		u.pause(ctx)
	}
	u.log.Error("the agent's DaemonSet seems to be gone, but the API server does not confirm it: the node stays as it is")
	return unknown
}

// pause ends early when there is nothing more to ask.
func (u *uninstall) pause(ctx context.Context) {
	timer := time.NewTimer(u.pace.poll)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-u.begun:
	case <-ctx.Done():
	}
}

// askAll asks about the namespace, the agent's pod and its DaemonSet.
func (u *uninstall) askAll(ctx context.Context) verdict {
	ctx, cancel := context.WithTimeout(ctx, u.pace.ask)
	defer cancel()
	ends := make(chan bool, 1)
	go func() { ends <- u.own.namespaceEnds(ctx) }()
	v := u.askOwner(ctx)
	if <-ends {
		return over
	}
	return v
}

// askOwner goes by the pod: the DaemonSet that counts is the one that it belongs to, now.
func (u *uninstall) askOwner(ctx context.Context) verdict {
	if u.own.pod == "" {
		return unknown
	}
	o, state, err := u.own.ofPod(ctx)
	switch {
	case err == nil && state == podFree:
		return stays // set free, to be taken over by a successor
	case err == nil && state == podOwned:
		u.learn(o)
	case err != nil && !refused(err):
		return unknown
	}
	v := u.askSet(ctx)
	if v == missing && err != nil {
		// The permission for pods goes with an uninstall. By itself its loss says nothing.
		switch u.seen() {
		case deletion:
			return over
		case orphaning:
			return unknown
		}
	}
	return v
}

// askSet asks about the DaemonSet alone. One of that name which is not about to end is the agent's, or its successor.
func (u *uninstall) askSet(ctx context.Context) verdict {
	name := u.knownOwner().name
	if name == "" {
		return unknown
	}
	ctx, cancel := context.WithTimeout(ctx, u.pace.ask)
	defer cancel()
	l, err := u.own.set(ctx, name)
	switch {
	case apierrors.IsNotFound(err):
		return missing
	case err != nil && refused(err) && u.seen() == deletion:
		return over // the permission is gone too
	case err != nil:
		return unknown
	case l.ending && !l.orphaned:
		return missing
	}
	return stays
}
