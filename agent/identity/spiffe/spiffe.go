// Package spiffe gets SVIDs from the SPIFFE agent of the node, as SPIRE's is one.
//
// Two APIs give the SVIDs of other workloads. The SPIFFE Broker API is told which pod is meant and finds out by itself
// what is true of it. SPIRE's older Delegated Identity API has to be told, so that entries which select more than
// namespace, service account, name and UID match there never: it is the fallback. One HTTP/2 connection carries a stream
// for each identity. SPIRE's agent sets no limit to the streams of a connection.
package spiffe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/identity"
)

// Options configure a Client. Addresses are unix:///path; one of Broker and Admin is required, and so are TrustDomain
// and Logger.
type Options struct {
	Broker      string // the SPIFFE Broker API, preferred
	Admin       string // SPIRE agent's admin socket, for the Delegated Identity API
	WorkloadAPI string // where this agent's own SVID comes from, without which the Broker API lets nobody in
	TrustDomain spiffeid.TrustDomain
	Logger      *slog.Logger
}

func (o *Options) check() error {
	for _, a := range []struct{ name, address string }{
		{"broker", o.Broker}, {"admin", o.Admin}, {"Workload API", o.WorkloadAPI},
	} {
		path, ok := strings.CutPrefix(a.address, "unix://")
		if a.address != "" && (!ok || !filepath.IsAbs(path)) {
			return fmt.Errorf("SPIFFE %s address %q: want unix:///path", a.name, a.address)
		}
	}
	switch {
	case o.Broker == "" && o.Admin == "":
		return errors.New("SPIFFE: neither the address of the broker nor that of the admin socket")
	case o.Broker != "" && o.WorkloadAPI == "":
		return errors.New("SPIFFE broker: needs the address of the Workload API too")
	case o.TrustDomain.IsZero():
		return errors.New("SPIFFE: no trust domain")
	case o.Logger == nil:
		return errors.New("SPIFFE: no logger")
	}
	return nil
}

// pace is how long things may take, and how often they are tried.
type pace struct {
	open     time.Duration // from asking to the first answer, and before that for an API that works
	probe    time.Duration // one look at whether an API works
	prefer   time.Duration // between looks at a preferred API while another is in use
	retry    time.Duration // the shortest pause after a failure
	maxRetry time.Duration // the longest
	patience time.Duration // for an answer that has the SVID
}

func defaultPace() pace {
	return pace{
		open: 10 * time.Second, probe: 5 * time.Second, prefer: 30 * time.Second,
		retry: 250 * time.Millisecond, maxRetry: 5 * time.Second,
		patience: 15 * time.Second, // SPIRE's agent asks its server every 5 s for new entries
	}
}

// maxOpening bounds the streams that wait for their first answer: each has the SPIFFE agent look at processes or ask the
// kubelet.
const maxOpening = 32

// Client is an identity.Watcher and an identity.Notifier. Close ends it.
type Client struct {
	Options
	pace    pace
	roots   *roots
	choice  *choice
	opening chan struct{}
	close   func() error
}

// New returns a Client. The SPIFFE agent need not run yet.
func New(o Options) (*Client, error) { return start(o, defaultPace()) }

func start(o Options, p pace) (*Client, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	roots := newRoots(o.TrustDomain)
	apis, err := dial(ctx, &tasks, o, p, roots)
	if err != nil {
		stop()
		tasks.Wait()
		return nil, err
	}
	c := &Client{Options: o, pace: p, roots: roots, choice: newChoice(apis, p, o.Logger),
		opening: make(chan struct{}, maxOpening)}
	tasks.Go(func() { c.choice.run(ctx) })
	c.close = sync.OnceValue(func() error {
		stop()
		tasks.Wait()
		return closeAll(apis)
	})
	return c, nil
}

// dial returns the APIs in order of preference.
func dial(ctx context.Context, tasks *sync.WaitGroup, o Options, p pace, r *roots) (apis []api, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll(apis))
			apis = nil
		}
	}()
	if o.Broker != "" {
		b, err := dialBroker(ctx, tasks, o, p)
		if err != nil {
			return apis, err
		}
		apis = append(apis, b)
	}
	if o.Admin != "" {
		d, err := dialDelegated(o, p, r)
		if err != nil {
			return apis, err
		}
		apis = append(apis, d)
	}
	return apis, nil
}

func closeAll(apis []api) error {
	var errs []error
	for _, a := range apis {
		errs = append(errs, a.close())
	}
	return errors.Join(errs...)
}

// Close ends all streams and connections, and waits.
func (c *Client) Close() error { return c.close() }

// Bundles returns the roots of the own trust domain, and then of those it federates with for at least one workload.
func (c *Client) Bundles() []*x509bundle.Bundle { return c.roots.all() }

// Changed returns a channel that is closed when Bundles is to return something else than before. Ask for the
// channel first, then for the bundles, and no change is missed.
func (c *Client) Changed() <-chan struct{} { return c.roots.next() }

// String implements identity.Issuer.
func (c *Client) String() string {
	if use := c.choice.current(); use != nil {
		return use.api.String()
	}
	return "SPIFFE agent, which does not answer"
}

var (
	_ identity.Watcher  = (*Client)(nil)
	_ identity.Notifier = (*Client)(nil)
)
