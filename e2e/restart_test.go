package e2e

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/e2e/demo"
)

// client makes one mTLS request after the other, each on a connection of its own.
type client struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	done   int
	failed []demo.Attempt
}

func keepRequesting(ctx context.Context, m *demo.Mesh) *client {
	c := new(client)
	ctx, c.cancel = context.WithCancel(ctx)
	c.wg.Go(func() {
		for ctx.Err() == nil {
			// Not with ctx: what stop interrupts did not fail.
			result := m.Request(context.WithoutCancel(ctx), nginx, m.ServiceAddr(productpage, 4, 9080), "steady")
			c.done++
			if !result.OK {
				c.failed = append(c.failed, result)
			}
		}
	})
	return c
}

func (c *client) stop() {
	c.cancel()
	c.wg.Wait()
}

func TestNoRequestFailsWhileAgentsRestart(t *testing.T) {
	m := startMesh(t)
	strictMesh(t, m)
	c := keepRequesting(t.Context(), m)
	for range 5 {
		m.Kill("agent")
		time.Sleep(200 * time.Millisecond)
		if err := m.Start(t.Context(), "agent"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(700 * time.Millisecond)
	}
	c.stop()
	if len(c.failed) > 0 {
		t.Errorf("%d of %d requests failed, the first: %+v", len(c.failed), c.done, c.failed[0])
	}
	if c.done < 20 {
		t.Errorf("only %d requests were made", c.done)
	}
	t.Logf("%d requests", c.done)
}

// A connection that is made while no tunnel is there waits in the listeners' backlog.
func TestConnectionMadeWithoutATunnelWaitsForTheNextOne(t *testing.T) {
	m := startMesh(t)
	strictMesh(t, m)
	m.Kill("tunnel")
	c := keepRequesting(t.Context(), m)
	time.Sleep(500 * time.Millisecond)
	if err := m.Start(t.Context(), "tunnel"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	c.stop()
	if len(c.failed) > 0 {
		t.Errorf("%d of %d requests failed, the first: %+v", len(c.failed), c.done, c.failed[0])
	}
	if c.done < 2 {
		t.Errorf("only %d requests were made", c.done)
	}
	t.Logf("%d requests", c.done)
}
