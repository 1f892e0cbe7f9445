package tunnel

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// TestHoldings: a new agent first hears what the tunnel holds from the one before, and no key.
func TestHoldings(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	n := newNode(t, ca)
	good, ended := ca.intermediate(t).svid(t, ca.id("good"), later()), ca.svid(t, ca.id("ended"), time.Now().Add(-time.Second))
	n.pod(1, "127.77.1.1", ca.id("good"))
	n.send(good, ended)
	n.start()
	n.eventually("hello of a tunnel that holds nothing", func() bool { h := n.heard(); return len(h) == 1 && h[0].GetHello() != nil })
	if held := n.heard()[0].GetHello().GetHoldings(); held != 0 {
		t.Errorf("%d holdings of a tunnel that has just started", held)
	}
	n.eventually("both SVIDs", func() bool { return len(n.tunnel.ids.held()) == 2 })

	n.agent.stop()
	n.await("agent is gone")
	n.agent = n.startAgent()
	n.eventually("hello and one holding", func() bool { return len(n.heard()) == 2 })
	n.mu.Lock()
	said := n.said[:2]
	n.mu.Unlock()
	if said[0].GetHello().GetHoldings() != 1 || said[1].GetHolding() == nil {
		t.Fatalf("%v, want hello and then the holding, before anything else", said)
	}
	chain := said[1].GetHolding().GetChain()
	want := good.GetSvid().GetChain()
	if len(chain) != 2 || !bytes.Equal(chain[0], want[0]) || !bytes.Equal(chain[1], want[1]) {
		t.Errorf("%d certificates, want the chain of what has not expired", len(chain))
	}

	// Another tunnel, as after a restart, holds nothing and is told everything.
	n.agent.stop()
	must(t, n.stop())
	n.logs = &syncBuffer{}
	n.start()
	n.eventually("hello of the next tunnel", func() bool { return len(n.heard()) == 1 })
	if held := n.heard()[0].GetHello().GetHoldings(); held != 0 {
		t.Errorf("%d holdings of a tunnel that has just started", held)
	}
	n.eventually("both SVIDs again", func() bool { return len(n.tunnel.ids.held()) == 2 })
}

// TestManyHoldings: more than the outbox takes, to an agent that talks before it listens. What the tunnel wants
// meanwhile comes after them and is not lost.
func TestManyHoldings(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	n := newNode(t, ca)
	v, err := parseSVID(spiffeid.RequireFromString(ca.id("a")), ca.svid(t, ca.id("a"), later()).GetSvid())
	must(t, err)
	n.pod(1, "127.77.1.1", ca.id("a"))
	for i := range 3000 { // many times what the socket's buffer holds
		n.send(bundleOf(fmt.Sprintf("domain-%d.test", i), ca))
	}
	hard, abort := context.WithCancel(t.Context())
	n.tunnel = newTunnel(hard, hard, Options{ControlPath: n.path, Redirection: n.redirection})
	for i := range maxHoldings + 10 {
		id := spiffeid.RequireFromString(fmt.Sprintf("spiffe://cluster.local/ns/default/sa/%d", i))
		n.tunnel.ids.svids[id] = &svid{id: id, certificate: v.certificate, chain: v.chain, key: v.key, refused: v.refused}
	}
	n.agent = n.startAgent()
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.tunnel.keepSession(hard)
	}()
	defer func() {
		n.agent.stop()
		abort()
		<-done
		n.tunnel.closeWorkloads()
		n.tunnel.accepting.Wait()
	}()
	n.eventually("all holdings and a request for sockets", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return len(n.said) >= 1+maxHoldings+1
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	if got := n.said[0].GetHello().GetHoldings(); got != maxHoldings {
		t.Errorf("%d announced, want %d", got, maxHoldings)
	}
	for i, m := range n.said[1 : 1+maxHoldings] {
		if m.GetHolding() == nil {
			t.Fatalf("message %d is %v, want a holding", i, m)
		}
	}
	if m := n.said[1+maxHoldings]; m.GetNeedSockets() == nil {
		t.Errorf("%v, want what was posted meanwhile", m)
	}
}
