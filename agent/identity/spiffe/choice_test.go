package spiffe

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/spiffe/spiffetest"
)

// TestBrokerIsPreferredAndReturnedTo refuses in the ways that SPIRE's agent does.
func TestBrokerIsPreferredAndReturnedTo(t *testing.T) {
	for _, refusal := range []error{
		status.Error(codes.Unimplemented, "no workload attestor handled reference"),
		status.Error(codes.Unavailable, "kubelet away"),
		status.Error(codes.PermissionDenied, "broker is not allowed to use reference type"),
		status.Error(codes.Internal, "broker configuration missing"),
		status.Error(codes.FailedPrecondition, "kubelet client is disabled"),
	} {
		t.Run(status.Code(refusal).String(), func(t *testing.T) {
			a := spiffetest.Start(t, domain())
			a.Give(cart().UID, only(a.Mint(cart().ID)))
			c, log := client(t, a, quick(), spiffetest.Broker, spiffetest.Delegated)
			x := watch(t, c, cart())
			x.next(t)
			eventually(t, "broker", func() bool { return strings.Contains(c.String(), "Broker") })
			a.Refuse(spiffetest.Broker, refusal)
			eventually(t, "fallback", func() bool { return strings.Contains(c.String(), "Delegated") })
			s := a.Mint(cart().ID)
			a.Give(cart().UID, only(s))
			x.until(t, s)
			time.Sleep(2 * quick().prefer)
			if n := log.count("not by the API that is preferred"); n != 1 {
				t.Errorf("the fallback is logged %d times", n)
			}
			a.Refuse(spiffetest.Broker, nil)
			eventually(t, "broker again", func() bool { return strings.Contains(c.String(), "Broker") })
			s = a.Mint(cart().ID)
			a.Give(cart().UID, only(s))
			x.until(t, s)
			eventually(t, "end of the old stream", func() bool { return a.Streams() == 1 })
		})
	}
}

func TestBrokerWaitsForAnIdentityOfOurOwn(t *testing.T) {
	a := spiffetest.Start(t, domain())
	a.Refuse(spiffetest.WorkloadAPI, status.Error(codes.PermissionDenied, "no identity issued"))
	s := a.Mint(cart().ID)
	a.Give(cart().UID, only(s))
	p := quick()
	p.probe = 100 * time.Millisecond
	c, log := client(t, a, p, spiffetest.Broker)
	x := watch(t, c, cart())
	eventually(t, "reason", func() bool { return len(x.failed()) > 0 })
	if err := x.failed()[0]; !strings.Contains(err.Error(), "no SVID of our own") {
		t.Errorf("error %v", err)
	}
	a.Refuse(spiffetest.WorkloadAPI, nil)
	x.until(t, s)
	if n := log.count("own SVID not received"); n != 1 {
		t.Errorf("the missing SVID is logged %d times", n)
	}
}

func TestNoAgentAtAll(t *testing.T) {
	a := spiffetest.Start(t, domain())
	a.Stop()
	s := a.Mint(cart().ID)
	a.Give(cart().UID, only(s))
	p := quick()
	p.open, p.probe = 300*time.Millisecond, 100*time.Millisecond
	c, _ := client(t, a, p, spiffetest.Broker, spiffetest.Delegated)
	if got := bundles(c); got != "[cluster.local=0]" {
		t.Errorf("roots %s", got)
	}
	x := watch(t, c, cart())
	eventually(t, "error that names the sockets", func() bool {
		errs := x.failed()
		return len(errs) > 0 && strings.Contains(errs[len(errs)-1].Error(), a.Address(spiffetest.Delegated))
	})
	a.Run()
	x.until(t, s)
}

func TestCloseEndsWatches(t *testing.T) {
	both(t, func(t *testing.T, a *spiffetest.Agent, service string) {
		a.Give(cart().UID, only(a.Mint(cart().ID)))
		c, _ := client(t, a, quick(), service)
		ended, got := make(chan error), make(chan *identity.SVID, 1)
		go func() { ended <- c.Watch(context.Background(), cart(), func(s *identity.SVID) { got <- s }) }()
		<-got
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err == nil {
			t.Error("the watch ended without an error")
		}
		if _, err := c.Issue(t.Context(), cart()); !errors.Is(err, errClosed) {
			t.Errorf("after the end: %v", err)
		}
	})
}
