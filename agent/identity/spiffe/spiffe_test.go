package spiffe

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/ca/catest"
	"github.com/culvert-mesh/culvert/agent/identity/spiffe/spiffetest"
)

func only(s spiffetest.SVID, with ...spiffeid.TrustDomain) spiffetest.Answer {
	return spiffetest.Answer{SVIDs: []spiffetest.SVID{s}, FederatesWith: with}
}

func TestOptions(t *testing.T) {
	good := Options{Broker: "unix:///b", Admin: "unix:///a", WorkloadAPI: "unix:///w", TrustDomain: domain(), Logger: slog.Default()}
	for name, alter := range map[string]func(*Options){
		"neither":   func(o *Options) { o.Broker, o.Admin = "", "" },
		"relative":  func(o *Options) { o.Admin = "unix://run/a" },
		"TCP":       func(o *Options) { o.Broker = "localhost:80" },
		"no own":    func(o *Options) { o.WorkloadAPI = "" },
		"no domain": func(o *Options) { o.TrustDomain = spiffeid.TrustDomain{} },
	} {
		o := good
		alter(&o)
		if c, err := New(o); err == nil {
			t.Errorf("%s: taken: %v", name, c.Close())
		}
	}
}

func TestOneIsPickedOfSeveralAndRenewed(t *testing.T) {
	both(t, func(t *testing.T, a *spiffetest.Agent, service string) {
		first, other := a.Mint(cart().ID), a.Mint(pod("admin").ID)
		a.Give(cart().UID, spiffetest.Answer{SVIDs: []spiffetest.SVID{other, first}})
		c, _ := client(t, a, quick(), service)
		x := watch(t, c, cart())
		if got := x.until(t, first); got.ID != cart().ID || len(got.FederatesWith) != 0 {
			t.Errorf("SVID of %s that federates with %v", got.ID, got.FederatesWith)
		}
		if got := bundles(c); got != "[cluster.local=1]" {
			t.Errorf("roots %s", got)
		}
		second := a.Mint(cart().ID)
		a.Give(cart().UID, only(second))
		x.until(t, second)
		if errs := x.failed(); len(errs) > 0 {
			t.Errorf("errors %v", errs)
		}
		if !strings.Contains(c.String(), a.Address(service)) {
			t.Errorf("it calls itself %s", c)
		}
	})
}

func TestIssue(t *testing.T) {
	both(t, func(t *testing.T, a *spiffetest.Agent, service string) {
		s := a.Mint(cart().ID)
		a.Give(cart().UID, only(s))
		c, _ := client(t, a, quick(), service)
		got, err := c.Issue(t.Context(), cart())
		if err != nil || !bytes.Equal(got.Certificates[0].Raw, s.Chain) {
			t.Fatalf("got %v, %v", got, err)
		}
		eventually(t, "stream closed", func() bool { return a.Streams() == 0 })
		a.Give(cart().UID, only(a.Mint(pod("admin").ID)))
		_, err = c.Issue(t.Context(), cart())
		if !errors.Is(err, ErrNoEntry) {
			t.Fatalf("error %v, want one about the entry", err)
		}
		for _, part := range []string{"only spiffe://cluster.local/ns/shop/sa/admin", "SPIFFE ID spiffe://cluster.local/ns/shop/sa/cart",
			"k8s:ns:shop k8s:sa:cart k8s:pod-name:cart-0 k8s:pod-uid:uid-cart"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("error %q lacks %q", err, part)
			}
		}
		stranger := cart()
		stranger.ID = spiffeid.RequireFromPath(foreign(), "/x")
		if _, err := c.Issue(t.Context(), stranger); err == nil || !strings.Contains(err.Error(), "trust domain") {
			t.Errorf("of another trust domain: %v", err)
		}
	})
}

// TestAnswersThatAreNotTaken has the last good SVID first, then a bad one, then a good one: nothing bad is given on, and
// the watch recovers.
func TestAnswersThatAreNotTaken(t *testing.T) {
	at := func(id spiffeid.ID) func(*spiffetest.Agent) spiffetest.SVID {
		return func(a *spiffetest.Agent) spiffetest.SVID { return a.Mint(id) }
	}
	tests := []struct {
		name string
		bad  func(t *testing.T, a *spiffetest.Agent) spiffetest.SVID
		want string
	}{
		{"garbage DER", func(_ *testing.T, a *spiffetest.Agent) spiffetest.SVID {
			s := a.Mint(cart().ID)
			s.Chain = []byte("garbage")
			return s
		}, "cannot parse"},
		{"no certificate", func(_ *testing.T, a *spiffetest.Agent) spiffetest.SVID {
			s := a.Mint(cart().ID)
			s.Chain = nil
			return s
		}, "x509svid"},
		{"key of another", func(_ *testing.T, a *spiffetest.Agent) spiffetest.SVID {
			s := a.Mint(cart().ID)
			s.Key = a.Mint(cart().ID).Key
			return s
		}, "key"},
		{"another identity under this name", func(_ *testing.T, a *spiffetest.Agent) spiffetest.SVID {
			s := at(pod("admin").ID)(a)
			s.ID = cart().ID.String()
			return s
		}, "is for spiffe://cluster.local/ns/shop/sa/admin"},
		{"expired", func(_ *testing.T, a *spiffetest.Agent) spiffetest.SVID {
			return a.Mint(cart().ID, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
		}, "expired"},
		{"chain without its root", func(t *testing.T, a *spiffetest.Agent) spiffetest.SVID {
			return spiffetest.MintBy(t, catest.Root(t, "stranger"), cart().ID)
		}, "does not verify"},
		{"chain that brings its root along", func(t *testing.T, a *spiffetest.Agent) spiffetest.SVID {
			stranger := catest.Root(t, "stranger")
			s := spiffetest.MintBy(t, stranger, cart().ID)
			s.Chain = append(s.Chain, stranger.Cert.Raw...)
			return s
		}, "does not verify"},
	}
	both(t, func(t *testing.T, a *spiffetest.Agent, service string) {
		good := a.Mint(cart().ID)
		a.Give(cart().UID, only(good))
		c, _ := client(t, a, quick(), service)
		x := watch(t, c, cart())
		x.until(t, good)
		for _, test := range tests {
			failed := len(x.failed())
			a.Give(cart().UID, only(test.bad(t, a)))
			eventually(t, test.name, func() bool { return len(x.failed()) > failed })
			if err := x.failed()[failed]; !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: error %v, want %q", test.name, err, test.want)
			}
			x.none(t)
			good = a.Mint(cart().ID)
			a.Give(cart().UID, only(good))
			x.until(t, good)
		}
	})
}

func TestEntryAppearsWhileTheStreamWaits(t *testing.T) {
	both(t, func(t *testing.T, a *spiffetest.Agent, service string) {
		a.Give(cart().UID, spiffetest.Answer{})
		c, _ := client(t, a, quick(), service)
		x := watch(t, c, cart())
		eventually(t, "stream", func() bool { return a.Streams() == 1 })
		s := a.Mint(cart().ID)
		a.Give(cart().UID, only(s))
		x.until(t, s)
		if n := a.Opened(service); n != 1 || len(x.failed()) != 0 {
			t.Errorf("%d streams, errors %v; want one and none", n, x.failed())
		}
	})
}

func TestMissingEntryEndsTheWatchAfterAWhile(t *testing.T) {
	both(t, func(t *testing.T, a *spiffetest.Agent, service string) {
		p := quick()
		p.patience = 50 * time.Millisecond
		a.Give(cart().UID, only(a.Mint(cart().ID)))
		c, _ := client(t, a, p, service)
		x := watch(t, c, cart())
		x.next(t)
		a.Give(cart().UID, spiffetest.Answer{}) // the entry is deleted
		eventually(t, "error", func() bool { return len(x.failed()) > 1 })
		for _, err := range x.failed() {
			if !errors.Is(err, ErrNoEntry) {
				t.Errorf("error %v, want one about the entry", err)
			}
		}
		if got := bundles(c); got != "[cluster.local=1]" {
			t.Errorf("roots %s", got)
		}
		x.none(t)
		s := a.Mint(cart().ID)
		a.Give(cart().UID, only(s))
		x.until(t, s)
	})
}

func TestStreamResetsAndAgentRestarts(t *testing.T) {
	both(t, func(t *testing.T, a *spiffetest.Agent, service string) {
		a.Give(cart().UID, only(a.Mint(cart().ID)))
		c, log := client(t, a, quick(), service)
		x := watch(t, c, cart())
		x.next(t)
		a.Reset()
		eventually(t, "reset", func() bool { return len(x.failed()) == 1 })
		x.next(t)
		a.Stop()
		eventually(t, "outage in the log", func() bool { return log.count("no SPIFFE agent answers") == 1 })
		if got := bundles(c); got != "[cluster.local=1]" {
			t.Errorf("while the agent is away: roots %s", got)
		}
		s := a.Mint(cart().ID)
		a.Give(cart().UID, only(s))
		a.Run()
		x.until(t, s)
		if n := log.count("no SPIFFE agent answers"); n != 1 {
			t.Errorf("the outage is logged %d times", n)
		}
	})
}

// TestRootsSwapInMidAir has the signer change with the roots of before still there, then without, then before them.
func TestRootsSwapInMidAir(t *testing.T) {
	both(t, func(t *testing.T, a *spiffetest.Agent, service string) {
		c, _ := client(t, a, quick(), service)
		a.Give(cart().UID, only(a.Mint(cart().ID)))
		x := watch(t, c, cart())
		x.next(t)
		changed := c.Changed()
		next := catest.Root(t, "next")
		a.Trust(domain(), catest.Root(t, "unrelated"), next)
		<-changed
		a.Sign(next)
		s := a.Mint(cart().ID)
		a.Give(cart().UID, only(s))
		x.until(t, s)
		if got := bundles(c); got != "[cluster.local=2]" {
			t.Errorf("roots %s", got)
		}
		early := catest.Root(t, "signs before it is known")
		a.Sign(early)
		s = a.Mint(cart().ID)
		failed := len(x.failed())
		a.Give(cart().UID, only(s))
		eventually(t, "refusal", func() bool { return len(x.failed()) > failed })
		x.none(t)
		a.Trust(domain(), early)
		x.until(t, s)
	})
}

func TestFederationComesAndGoes(t *testing.T) {
	both(t, func(t *testing.T, a *spiffetest.Agent, service string) {
		a.Trust(foreign(), catest.Root(t, "foreign"))
		s, plain := a.Mint(cart().ID), a.Mint(pod("plain").ID)
		a.Give(cart().UID, only(s, foreign()))
		a.Give(pod("plain").UID, only(plain))
		c, _ := client(t, a, quick(), service)
		x, y := watch(t, c, cart()), watch(t, c, pod("plain"))
		if got := x.next(t); len(got.FederatesWith) != 1 || got.FederatesWith[0] != foreign() {
			t.Errorf("federates with %v", got.FederatesWith)
		}
		if got := y.next(t); len(got.FederatesWith) != 0 {
			t.Errorf("the other federates with %v", got.FederatesWith)
		}
		if got := bundles(c); got != "[cluster.local=1 elsewhere.example=1]" {
			t.Errorf("roots %s", got)
		}
		a.Trust(foreign(), catest.Root(t, "foreign 1"), catest.Root(t, "foreign 2"))
		eventually(t, "new foreign roots", func() bool { return bundles(c) == "[cluster.local=1 elsewhere.example=2]" })
		x.none(t) // other roots do not make another SVID
		a.Give(cart().UID, only(s))
		a.Trust(foreign())
		if got := x.next(t); len(got.FederatesWith) != 0 {
			t.Errorf("after the end of federation: %v", got.FederatesWith)
		}
		eventually(t, "foreign roots gone", func() bool { return bundles(c) == "[cluster.local=1]" })
	})
}

func TestForeignRootsGoWithTheirLastUser(t *testing.T) {
	a := spiffetest.Start(t, domain())
	a.Trust(foreign(), catest.Root(t, "foreign"))
	a.Give(cart().UID, only(a.Mint(cart().ID), foreign()))
	c, _ := client(t, a, quick(), spiffetest.Broker)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	err := c.Watch(ctx, cart(), func(*identity.SVID) {
		if got := bundles(c); got != "[cluster.local=1 elsewhere.example=1]" {
			t.Errorf("roots %s", got)
		}
		stop()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
	if got := bundles(c); got != "[cluster.local=1]" {
		t.Errorf("roots %s after the last user left", got)
	}
}

func TestSlowAnswersAreGivenUp(t *testing.T) {
	both(t, func(t *testing.T, a *spiffetest.Agent, service string) {
		p := quick()
		p.open = 200 * time.Millisecond
		a.Delay(time.Hour)
		s := a.Mint(cart().ID)
		a.Give(cart().UID, only(s))
		c, _ := client(t, a, p, service)
		x := watch(t, c, cart())
		eventually(t, "giving up", func() bool { return len(x.failed()) > 1 })
		for _, err := range x.failed() {
			if !errors.Is(err, errSlow) {
				t.Errorf("error %v, want %v", err, errSlow)
			}
		}
		a.Delay(50 * time.Millisecond)
		x.until(t, s)
	})
}

func TestPodThatTheBrokerDoesNotKnow(t *testing.T) {
	a := spiffetest.Start(t, domain())
	c, log := client(t, a, quick(), spiffetest.Broker, spiffetest.Delegated)
	err := c.Watch(t.Context(), cart(), func(*identity.SVID) {})
	if status.Code(err) != codes.NotFound {
		t.Errorf("error %v, want NotFound", err)
	}
	if log.count("preferred") > 0 {
		t.Error("the API was changed for that")
	}
}
