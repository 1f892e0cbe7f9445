package spiffe

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/spiffe/spiffetest"
)

const (
	soon = 20 * time.Second // for what must happen
	calm = 100 * time.Millisecond
)

func domain() spiffeid.TrustDomain { return spiffeid.RequireTrustDomainFromString("cluster.local") }
func foreign() spiffeid.TrustDomain {
	return spiffeid.RequireTrustDomainFromString("elsewhere.example")
}

func cart() identity.Workload { return pod("cart") }

func pod(name string) identity.Workload {
	return identity.Workload{ID: spiffeid.RequireFromPath(domain(), "/ns/shop/sa/"+name), Namespace: "shop", ServiceAccount: name,
		Pod: name + "-0", UID: "uid-" + name}
}

// quick is a pace for tests.
func quick() pace {
	return pace{open: 2 * time.Second, probe: 2 * time.Second, prefer: 200 * time.Millisecond, retry: 20 * time.Millisecond,
		maxRetry: 100 * time.Millisecond, patience: soon}
}

// logged is a log that can be read while it is written.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.text.Bytes(), []byte(text))
}

// client returns a Client that uses these services of a.
func client(t *testing.T, a *spiffetest.Agent, p pace, services ...string) (*Client, *logged) {
	t.Helper()
	log := &logged{}
	o := Options{TrustDomain: domain(), Logger: slog.New(slog.NewTextHandler(log, nil)), WorkloadAPI: a.Address(spiffetest.WorkloadAPI)}
	if slices.Contains(services, spiffetest.Broker) {
		o.Broker = a.Address(spiffetest.Broker)
	}
	if slices.Contains(services, spiffetest.Delegated) {
		o.Admin = a.Address(spiffetest.Delegated)
	}
	c, err := start(o, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c, log
}

// watched collects what a Watch gives, which is called again after each error as the Keeper does.
type watched struct {
	svids chan *identity.SVID
	mu    sync.Mutex
	errs  []error
}

func watch(t *testing.T, c *Client, w identity.Workload) *watched {
	t.Helper()
	x := &watched{svids: make(chan *identity.SVID, 1000)}
	ctx, stop := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		for ctx.Err() == nil {
			err := c.Watch(ctx, w, func(s *identity.SVID) { x.svids <- s })
			x.mu.Lock()
			x.errs = append(x.errs, err)
			x.mu.Unlock()
			sleep(ctx, 20*time.Millisecond)
		}
	})
	t.Cleanup(func() { stop(); done.Wait() })
	return x
}

func (x *watched) next(t *testing.T) *identity.SVID {
	t.Helper()
	select {
	case s := <-x.svids:
		return s
	case <-time.After(soon):
		t.Fatalf("no SVID; errors %v", x.failed())
		return nil
	}
}

// until waits for that chain: a stream that was opened anew tells once more what was known.
func (x *watched) until(t *testing.T, s spiffetest.SVID) *identity.SVID {
	t.Helper()
	for {
		if got := x.next(t); bytes.Equal(got.Certificates[0].Raw, s.Chain) {
			return got
		}
	}
}

func (x *watched) failed() []error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.errs)
}

func (x *watched) none(t *testing.T) {
	t.Helper()
	select {
	case s := <-x.svids:
		t.Errorf("got an SVID for %s, want none", s.ID)
	case <-time.After(calm):
	}
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(soon); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("still not: " + what)
		}
	}
}

// both runs a test against each API.
func both(t *testing.T, test func(t *testing.T, a *spiffetest.Agent, service string)) {
	for _, service := range []string{spiffetest.Broker, spiffetest.Delegated} {
		t.Run(service, func(t *testing.T) { test(t, spiffetest.Start(t, domain()), service) })
	}
}

// bundles shows what is known, as trust domain and number of roots.
func bundles(c *Client) string {
	var all []string
	for _, b := range c.Bundles() {
		all = append(all, fmt.Sprintf("%s=%d", b.TrustDomain(), len(b.X509Authorities())))
	}
	return fmt.Sprint(all)
}
