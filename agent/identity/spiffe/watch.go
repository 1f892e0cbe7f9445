package spiffe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/svidcheck"
)

// ErrNoEntry is in the error when the SPIFFE agent answers, but not with the SVID that was asked for.
var ErrNoEntry = errors.New("is a registration entry missing?")

var (
	errMoved  = errors.New("another SPIFFE API is in use now")
	errSlow   = errors.New("no answer in time")
	errEnough = errors.New("enough")
)

// Issue returns the SVID that the SPIFFE agent has for w. It is good until the agent replaces it, which Watch tells.
func (c *Client) Issue(ctx context.Context, w identity.Workload) (*identity.SVID, error) {
	var svid *identity.SVID
	err := c.follow(ctx, &teller{w}, 0, func(s *identity.SVID) error {
		svid = s
		return errEnough
	})
	if svid == nil {
		return nil, fmt.Errorf("SVID %s: %w", w.ID, err)
	}
	return svid, nil
}

// Watch implements identity.Watcher. When the SPIFFE agent does not have the SVID, it goes on for a while, because the
// entry may be on its way from SPIRE's server. It does not for ever, because the agent looks at the pod only when it is
// asked: what it had not found out yet, as a container's image, is missing until it is asked again.
func (c *Client) Watch(ctx context.Context, w identity.Workload, got func(*identity.SVID)) error {
	t := &teller{w}
	var last *identity.SVID
	err := errMoved
	for errors.Is(err, errMoved) {
		err = c.follow(ctx, t, c.pace.patience, func(svid *identity.SVID) error {
			if same(last, svid) {
				identity.Wipe(svid.PrivateKey)
				return nil
			}
			last = svid
			got(svid)
			return nil
		})
	}
	if ctx.Err() != nil {
		c.roots.forget(t)
	}
	return fmt.Errorf("SVID %s: %w", w.ID, err)
}

// same is for answers that differ in something else, as the roots.
func same(a, b *identity.SVID) bool {
	return a != nil && bytes.Equal(a.Certificates[0].Raw, b.Certificates[0].Raw) && slices.Equal(a.FederatesWith, b.FederatesWith)
}

// follow calls got with the SVID of each answer until it returns an error. Answers without it are borne with for as long
// as patience lasts.
func (c *Client) follow(ctx context.Context, t *teller, patience time.Duration, got func(*identity.SVID) error) error {
	if !t.ID.MemberOf(c.TrustDomain) {
		return fmt.Errorf("it is not in the SPIFFE agent's trust domain %s", c.TrustDomain)
	}
	use, err := c.choice.await(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(use.time, func() { cancel(errMoved) })()
	leave, err := c.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	limit := time.AfterFunc(c.pace.open, func() { cancel(errSlow) })
	defer func() { limit.Stop() }()
	next, err := use.api.subscribe(ctx, t.Workload)
	for err == nil {
		var a *answer
		if a, err = next(); err != nil {
			break
		}
		limit.Stop()
		leave()
		svid, problem := c.take(a, t)
		switch {
		case errors.Is(problem, ErrNoEntry) && patience > 0:
			limit = time.AfterFunc(patience, func() { cancel(problem) })
			continue
		case problem == nil:
			problem = got(svid)
		}
		if problem != nil {
			return fmt.Errorf("%s: %w", use.api, problem)
		}
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if doubtful(err) {
		c.choice.doubt()
	}
	return fmt.Errorf("%s: %w", use.api, err)
}

// enter waits until few enough are waiting for a first answer, and returns what ends that; it may be called again.
func (c *Client) enter(ctx context.Context) (leave func(), err error) {
	select {
	case c.opening <- struct{}{}:
		return sync.OnceFunc(func() { <-c.opening }), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// doubtful are errors that may mean the API and not the workload.
func doubtful(err error) bool {
	if errors.Is(err, errMoved) || errors.Is(err, ErrNoEntry) || errors.Is(err, context.Canceled) {
		return false
	}
	code := status.Code(err)
	return code != codes.NotFound && code != codes.InvalidArgument
}

// take returns the SVID that was asked for, checked against the roots known after this answer.
func (c *Client) take(a *answer, t *teller) (*identity.SVID, error) {
	defer a.wipe()
	at := slices.IndexFunc(a.offers, func(o offer) bool { return o.id == t.ID.String() })
	if at < 0 {
		return nil, missing(a, t.Workload)
	}
	o := a.offers[at]
	if a.federated != nil {
		a.federated[c.TrustDomain] = o.ownRoots
		if err := c.roots.put(t, a.federated); err != nil {
			return nil, err
		}
	}
	svid, err := x509svid.ParseRaw(o.chain, o.key)
	if err != nil {
		return nil, err
	}
	if err := svidcheck.Check(svid, t.ID, c.roots.ofOwn(), time.Now()); err != nil {
		identity.Wipe(svid.PrivateKey)
		return nil, err
	}
	return &identity.SVID{SVID: *svid, FederatesWith: a.federatesWith}, nil
}

// missing says what an entry would look like.
func missing(a *answer, w identity.Workload) error {
	got := "no SVID for this pod"
	if len(a.offers) > 0 {
		var ids []string
		for _, o := range a.offers {
			ids = append(ids, o.id)
		}
		got = "only " + strings.Join(ids, ", ")
	}
	var with []string
	for _, s := range selectors(w) {
		with = append(with, s.GetType()+":"+s.GetValue())
	}
	return fmt.Errorf("it has %s; %w Wanted is one with SPIFFE ID %s, this node's agent as parent, and selectors out of %s",
		got, ErrNoEntry, w.ID, strings.Join(with, " "))
}
