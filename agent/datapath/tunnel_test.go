package datapath

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/agent/datapath/flows"
	"github.com/culvert-mesh/culvert/policy"
)

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// bound binds a new socket, exempt or not, and tells its port.
func (l *lab) bound(ns *os.File, at netip.AddrPort, exempt bool) (int, uint16, error) {
	l.t.Helper()
	fd := l.socket(ns, family(at.Addr()))
	l.t.Cleanup(func() { unix.Close(fd) })
	if exempt {
		must(l.t, l.d.Exempt(fd))
	}
	if err := unix.Bind(fd, sockaddr(at)); err != nil {
		return fd, 0, err
	}
	return fd, portOf(l.t, fd), nil
}

func portOf(t testing.TB, fd int) uint16 {
	t.Helper()
	sa, err := unix.Getsockname(fd)
	must(t, err)
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(a.Port)
	case *unix.SockaddrInet6:
		return uint16(a.Port)
	}
	t.Fatalf("own address %v", sa)
	return 0
}

func TestBindOfOthersIsUntouched(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	for _, a := range []netip.Addr{pod4, pod6, netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		fd, got, err := l.bound(l.pod, port(a, 8080), false)
		if err != nil || got != 8080 {
			t.Errorf("bind to %s: port %d, %v", port(a, 8080), got, err)
		}
		must(t, unix.Close(fd))
	}
	if _, got, err := l.bound(l.client, port(client4, 8080), false); err != nil || got != 8080 {
		t.Errorf("bind outside of pods: port %d, %v", got, err)
	}
}

func TestExemptBindWithoutDelivery(t *testing.T) {
	l := newLab(t, modes(policy.Permissive, nil))
	for _, a := range []struct{ pod, client netip.Addr }{{pod4, client4}, {pod6, client6}} {
		l.serve(l.client, port(a.client, 8080))
		l.serve(l.pod, port(a.pod, 8080))
		fd, own, err := l.bound(l.pod, port(a.pod, 0), true)
		must(t, err)
		must(t, unix.Connect(fd, sockaddr(port(a.client, 8080))))
		if got, err := readLine(fd); err != nil || got != port(a.pod, own).String() {
			t.Errorf("the server sees %q, %v, want %s", got, err, port(a.pod, own))
		}
	}
	if n := l.deliveries(); n != 0 {
		t.Errorf("%d entries of deliveries", n)
	}
}

func TestExemptBindOutsideOfWorkloadsIsRefused(t *testing.T) {
	l := newLab(t, modes(policy.Permissive, nil))
	if _, _, err := l.bound(l.client, port(client4, 8080), true); !errors.Is(err, unix.EPERM) {
		t.Errorf("a bind that asks for a delivery in no workload: %v", err)
	}
	must(t, l.d.Detach(l.w.Cookie))
	if _, _, err := l.bound(l.pod, port(pod4, 8080), true); !errors.Is(err, unix.EPERM) {
		t.Errorf("a bind that asks for a delivery in a workload that is gone: %v", err)
	}
}

// A socket that was to deliver never connects to the client itself.
func TestWishOfADeliveryStays(t *testing.T) {
	l := newLab(t, modes(policy.Permissive, nil))
	l.serve(l.client, port(client4, 9090))
	fd, _, err := l.bound(l.pod, port(remote4, 8080), true)
	if !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("bind to another's address: %v", err)
	}
	must(t, unix.Bind(fd, sockaddr(port(pod4, 0))))
	if err := unix.Connect(fd, sockaddr(port(client4, 9090))); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connect to the client: %v, want it refused as the application does", err)
	}
}

// detachHooks takes programs away as something else on the node might.
func (l *lab) detachHooks(names ...string) {
	l.t.Helper()
	for _, name := range names {
		pinned, err := link.LoadPinnedLink(l.d.layout.linkPin(name), nil)
		must(l.t, err)
		must(l.t, pinned.Detach())
		must(l.t, pinned.Unpin())
		must(l.t, pinned.Close())
	}
}

func TestWithoutHooksTheTunnelFailsClosed(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	v4, v6 := l.outbound()
	l.detachHooks("culvert_bind4", "culvert_bind6", "culvert_getsockname4", "culvert_getsockname6")
	for _, a := range []struct {
		pod, remote netip.Addr
		ln          *net.TCPListener
	}{{pod4, remote4, v4}, {pod6, remote6, v6}} {
		_, err := l.dial(l.pod, netip.AddrPort{}, port(a.remote, 80))
		must(t, err)
		if to, err := destination(accept(t, a.ln)); !errors.Is(err, flows.ErrNoDestination) {
			t.Errorf("original destination %s, %v", to, err)
		}
		fd, _, err := l.bound(l.pod, port(a.pod, 8080), true) // takes the port in earnest
		must(t, err)
		must(t, unix.Close(fd))
		fd = l.socket(l.pod, family(a.pod))
		must(t, l.d.Exempt(fd))
		if err := (flows.Flows{}).Deliver(fd, port(a.pod, 8080)); !errors.Is(err, flows.ErrNotTaken) {
			t.Errorf("delivery where nobody listens: %v", err)
		}
		must(t, unix.Close(fd))
		l.listen(l.pod, port(a.pod, 8080))
		fd = l.socket(l.pod, family(a.pod))
		must(t, l.d.Exempt(fd))
		if err := (flows.Flows{}).Deliver(fd, port(a.pod, 8080)); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("delivery to a listener: %v", err)
		}
		must(t, unix.Close(fd))
	}
}

// What an earlier agent pinned may lack hooks.
func TestAdoptionAddsWhatIsMissing(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	l.detachHooks("culvert_bind4", "culvert_bind6", "culvert_getsockname4", "culvert_getsockname6")
	must(t, l.d.Close())
	l.open()
	must(t, l.d.Attach(l.w))
	v4, _ := l.outbound()
	_, err := l.dial(l.pod, netip.AddrPort{}, port(remote4, 80))
	must(t, err)
	if to, err := destination(accept(t, v4)); err != nil || to != port(remote4, 80) {
		t.Errorf("original destination %s, %v", to, err)
	}
	l.serve(l.pod, port(pod4, 8080))
	c, err := l.deliver(port(client4, 40001), 8080)
	must(t, err)
	if got := greeting(t, c); got != port(client4, 40001).String() {
		t.Errorf("the application sees %s", got)
	}
	if n, want := l.attached(), len(nodeHooks())+3; n != want {
		t.Errorf("%d programs are attached, want %d", n, want)
	}
}

func TestDestinationWithAVirtualPort(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	v4, v6 := l.outbound()
	for _, p := range []uint16{0x3b00, 0x3b17, 0x3bff} {
		for _, a := range []struct {
			remote netip.Addr
			ln     *net.TCPListener
		}{{remote4, v4}, {remote6, v6}} {
			_, err := l.dial(l.pod, netip.AddrPort{}, port(a.remote, p))
			must(t, err)
			if to, err := destination(accept(t, a.ln)); err != nil || to != port(a.remote, p) {
				t.Errorf("original destination %s, %v, want %s", to, err, port(a.remote, p))
			}
		}
	}
}

func TestNoDestination(t *testing.T) {
	l := newLab(t, modes(policy.Permissive, nil))
	for _, a := range []struct{ loopback, remote netip.Addr }{
		{netip.AddrFrom4([4]byte{127, 0, 0, 1}), remote4}, {netip.IPv6Loopback(), remote6},
	} {
		ln := l.listen(l.pod, port(a.loopback, 0)) // as the agent's are
		slot := map[bool]ListenerSlot{true: OutboundIPv4, false: OutboundIPv6}[a.loopback.Is4()]
		must(t, l.d.SetListener(l.w.Cookie, slot, ln))
		_, err := l.dial(l.pod, netip.AddrPort{}, ln.Addr().(*net.TCPAddr).AddrPort())
		must(t, err)
		if to, err := destination(accept(t, ln)); !errors.Is(err, flows.ErrNoDestination) {
			t.Errorf("the listener's own address is a destination: %s, %v", to, err)
		}
		_, err = l.dial(l.pod, netip.AddrPort{}, port(a.remote, 80))
		must(t, err)
		c := accept(t, ln)
		raw, err := c.SyscallConn()
		must(t, err)
		must(t, raw.Control(func(fd uintptr) { err = l.d.maps.AcceptedDestination.Delete(int32(fd)) }))
		must(t, err)
		if to, err := destination(c); !errors.Is(err, flows.ErrNoDestination) {
			t.Errorf("the virtual port is a destination: %s, %v", to, err)
		}
	}
}

// Each of many connections tells where it believes to be, and the accepting end must know the same, as soon as it has
// accepted.
func TestManyAtOnceKeepTheirDestinations(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	v4, v6 := l.outbound()
	const many = 500 // of each family
	var mu sync.Mutex
	var seen []netip.AddrPort
	var servers, clients sync.WaitGroup
	for _, ln := range []*net.TCPListener{v4, v6} {
		for range 4 {
			servers.Go(func() {
				for {
					c, err := ln.AcceptTCP()
					if err != nil {
						return
					}
					to, err := destination(c)
					servers.Go(func() {
						defer c.Close()
						c.SetDeadline(time.Now().Add(10 * wait))
						said := make([]byte, 2)
						if _, readErr := io.ReadFull(c, said); err != nil || readErr != nil || binary.BigEndian.Uint16(said) != to.Port() {
							t.Errorf("original destination %s, %v; the application says port %v, %v", to, err, said, readErr)
						}
						mu.Lock()
						defer mu.Unlock()
						seen = append(seen, to)
						c.Write(said)
					})
				}
			})
		}
	}
	want := map[netip.AddrPort]bool{}
	for i := range 2 * many {
		to := port([]netip.Addr{remote4, remote6}[i%2], uint16(10000+i))
		want[to] = true
		clients.Go(func() {
			fd := l.socket(l.pod, family(to.Addr()))
			defer unix.Close(fd)
			said := binary.BigEndian.AppendUint16(nil, to.Port())
			if err := unix.Connect(fd, sockaddr(to)); err != nil {
				t.Errorf("%s: %v", to, err)
				return
			}
			if _, err := unix.Write(fd, said); err != nil {
				t.Errorf("%s: %v", to, err)
			}
			_, _ = unix.Read(fd, said) // all stay open until they were asked
		})
	}
	clients.Wait()
	v4.Close()
	v6.Close()
	servers.Wait()
	slices.SortFunc(seen, netip.AddrPort.Compare)
	if seen = slices.Compact(seen); len(seen) != len(want) {
		t.Errorf("%d destinations, want %d", len(seen), len(want))
	}
	for _, to := range seen {
		if !want[to] {
			t.Errorf("nobody wanted to go to %s", to)
		}
	}
}
