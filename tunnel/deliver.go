package tunnel

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

const deliverAttempts = 8

// delivery is the connection that an application of this node shall see: from client, to its own port.
type delivery struct {
	workload uint64
	port     uint16
	client   netip.AddrPort
}

// deliveries are those that are open. Two with the same client address and port would be one connection
// in the application's eyes.
type deliveries struct {
	mu   sync.Mutex
	open map[delivery]struct{}
}

func (d *deliveries) claim(key delivery) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, taken := d.open[key]; taken {
		return false
	}
	if d.open == nil {
		d.open = map[delivery]struct{}{}
	}
	d.open[key] = struct{}{}
	return true
}

func (d *deliveries) release(key delivery) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.open, key)
}

// deliver connects to the application on pod's port, as client. The client's port is a wish: a port that
// is taken, or 0, is replaced by a random one. release must be called once the connection has ended.
func (t *tunnel) deliver(ctx context.Context, w *workload, pod netip.Addr, port uint16, client netip.AddrPort) (c *net.TCPConn, release func(), err error) {
	return t.deliverAs(ctx, w, pod, port, client, func(int) {})
}

// deliverAs has mark see the socket before it is connected.
func (t *tunnel) deliverAs(ctx context.Context, w *workload, pod netip.Addr, port uint16, client netip.AddrPort, mark func(fd int)) (c *net.TCPConn, release func(), err error) {
	if client.Port() == 0 {
		client = randomPort(client)
	}
	err = unix.EADDRINUSE
	for range deliverAttempts + 1 {
		key := delivery{workload: w.id, port: port, client: client}
		if t.deliveries.claim(key) {
			c, err = t.deliverOnce(ctx, w, pod, port, client, mark)
			if err == nil {
				return c, sync.OnceFunc(func() { t.deliveries.release(key) }), nil
			}
			t.deliveries.release(key)
		}
		if !errors.Is(err, unix.EADDRINUSE) && !errors.Is(err, unix.EADDRNOTAVAIL) {
			break
		}
		client = randomPort(client)
	}
	return nil, nil, fmt.Errorf("deliver to %s of %s: %w", netip.AddrPortFrom(pod, port), w.spec.Load().name, err)
}

func (t *tunnel) deliverOnce(ctx context.Context, w *workload, pod netip.Addr, port uint16, client netip.AddrPort, mark func(fd int)) (*net.TCPConn, error) {
	f, err := w.reserve(pod).get(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	app := netip.AddrPortFrom(pod, port)
	err = onSocket(f, func(fd int) error {
		mark(fd)
		return t.Redirection.Deliver(fd, app)
	})
	if err != nil {
		return nil, err
	}
	return connectUnnamed(ctx, f, client)
}

func randomPort(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr(), uint16(1024+rand.IntN(65536-1024)))
}
