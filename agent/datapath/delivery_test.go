package datapath

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/agent/datapath/flows"
	"github.com/culvert-mesh/culvert/bpf"
	"github.com/culvert-mesh/culvert/policy"
)

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// deliverySocket is what the agent hands to the tunnel, with the delivery asked for.
func (l *lab) deliverySocket(client netip.AddrPort, app uint16) int {
	l.t.Helper()
	family, own := unix.AF_INET, pod4
	if client.Addr().Is6() {
		family, own = unix.AF_INET6, pod6
	}
	fd := l.socket(l.pod, family)
	must(l.t, l.d.Exempt(fd))
	must(l.t, flows.Flows{}.Deliver(fd, port(own, app)))
	return fd
}

func (l *lab) deliver(client netip.AddrPort, app uint16) (*net.TCPConn, error) {
	l.t.Helper()
	fd := l.deliverySocket(client, app)
	f := os.NewFile(uintptr(fd), "delivery")
	defer f.Close()
	if err := unix.Connect(fd, sockaddr(client)); err != nil {
		return nil, err
	}
	c, err := net.FileConn(f)
	must(l.t, err)
	l.t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn), nil
}

func (l *lab) deliveries() int {
	var (
		k bpf.MapsDeliveryKey
		v bpf.MapsDeliveryValue
		n int
	)
	it := l.d.maps.Deliveries.Iterate()
	for it.Next(&k, &v) {
		n++
	}
	must(l.t, it.Err())
	return n
}

func (l *lab) noDeliveries() {
	l.t.Helper()
	eventually(l.t, "no deliveries", func() bool { return l.deliveries() == 0 })
}

func (l *lab) counter(name string) uint64 {
	l.t.Helper()
	c, err := l.d.Counters()
	must(l.t, err)
	return c[name]
}

func TestDeliveryShowsTheClient(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	l.serve(l.pod, port(pod4, 8080))
	l.serve(l.pod, port(pod6, 8080))
	for _, a := range []struct{ pod, client netip.Addr }{{pod4, client4}, {pod6, client6}, {pod4, remote4}, {pod6, remote6}} {
		client := port(a.client, 40001)
		c, err := l.deliver(client, 8080)
		if err != nil {
			t.Errorf("deliver from %s: %v", client, err)
			continue
		}
		if got := greeting(t, c); got != client.String() {
			t.Errorf("the application sees %s, want %s", got, client)
		}
		l.refused(port(a.pod, 8080))
		c.Close()
	}
	l.noDeliveries()
	if counts, err := l.d.Plaintext(); err != nil || len(counts) != 0 {
		t.Errorf("deliveries count as plaintext: %v, %v", counts, err)
	}
}

func TestDeliveryToMultipathListener(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	var ln net.Listener
	must(t, inNetns(l.pod, func() (err error) {
		var lc net.ListenConfig
		lc.SetMultipathTCP(true)
		ln, err = lc.Listen(t.Context(), "tcp4", port(pod4, 8080).String())
		return err
	}))
	defer ln.Close()
	for range 20 {
		c, err := l.deliver(port(client4, 40001), 8080)
		must(t, err)
		app, err := ln.Accept()
		must(t, err)
		if got := app.RemoteAddr().String(); got != port(client4, 40001).String() {
			t.Errorf("the application sees %s", got)
		}
		app.Close()
		waitEnd(t, c, io.EOF)
		c.Close()
		l.noDeliveries()
	}
}

func TestDeliveryCarriesBulk(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	l.serve(l.pod, port(pod4, 8080))
	l.serve(l.pod, port(pod6, 8080))
	data := make([]byte, 16<<20)
	rand.Read(data)
	for _, client := range []netip.Addr{client4, client6} {
		c, err := l.deliver(port(client, 40001), 8080)
		must(t, err)
		greeting(t, c)
		c.SetDeadline(time.Now().Add(10 * time.Second))
		go func() {
			c.Write(data)
			c.CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("echo of %d bytes: %d bytes, %v", len(data), len(got), err)
		}
		c.Close()
	}
	l.noDeliveries()
}

func TestDeliveriesEnd(t *testing.T) {
	tests := []struct {
		name string
		end  func(t *testing.T, tunnel, app *net.TCPConn)
	}{
		{"tunnel first", func(t *testing.T, tunnel, app *net.TCPConn) { tunnel.Close(); waitEnd(t, app, io.EOF); app.Close() }},
		{"application first", func(t *testing.T, tunnel, app *net.TCPConn) { app.Close(); waitEnd(t, tunnel, io.EOF); tunnel.Close() }},
		{"tunnel resets", func(t *testing.T, tunnel, app *net.TCPConn) {
			tunnel.SetLinger(0)
			tunnel.Close()
			waitEnd(t, app, unix.ECONNRESET)
		}},
		{"application resets", func(t *testing.T, tunnel, app *net.TCPConn) {
			app.SetLinger(0)
			app.Close()
			waitEnd(t, tunnel, unix.ECONNRESET)
		}},
		{"tunnel gone with data unread", func(t *testing.T, tunnel, app *net.TCPConn) {
			app.Write([]byte("unread"))
			time.Sleep(20 * time.Millisecond)
			tunnel.Close()
			waitEnd(t, app, unix.ECONNRESET)
		}},
		{"tunnel gone while the application still sends", func(t *testing.T, tunnel, app *net.TCPConn) {
			tunnel.Close()
			waitEnd(t, app, io.EOF)
			app.Write([]byte("late"))
			eventually(t, "the application learns that nobody reads", func() bool {
				_, err := app.Write([]byte("later"))
				return err != nil
			})
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, a := range []struct{ pod, client netip.Addr }{{pod4, client4}, {pod6, client6}} {
				l := newLab(t, modes(policy.Strict, nil))
				ln := l.listen(l.pod, port(a.pod, 8080))
				tunnel, err := l.deliver(port(a.client, 40001), 8080)
				must(t, err)
				app := accept(t, ln)
				if n := l.deliveries(); n != 2 {
					t.Errorf("%d entries of the delivery, want 2", n)
				}
				tt.end(t, tunnel, app)
				l.noDeliveries()
			}
		})
	}
}

func waitEnd(t *testing.T, c *net.TCPConn, want error) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(wait))
	_, err := io.ReadAll(c)
	if err == nil {
		err = io.EOF
	}
	if !errors.Is(err, want) {
		t.Errorf("%s ended with %v, want %v", c.LocalAddr(), err, want)
	}
}

func TestDeliveriesThatFailLeaveNothing(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	if _, err := l.deliver(port(client4, 40001), 7); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
	// Fails between the connect hook and the first segment.
	if _, err := l.deliver(port(netip.MustParseAddr("224.0.0.1"), 1), 7); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("a delivery from a multicast address: %v", err)
	}
	if _, err := l.deliver(port(pod4, 1), 7); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("a delivery from the pod itself: %v", err)
	}
	fd := l.socket(l.pod, unix.AF_INET)
	defer unix.Close(fd)
	must(t, l.d.Exempt(fd))
	must(t, unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1))
	if err := (flows.Flows{}).Deliver(fd, port(pod4, 7)); !errors.Is(err, flows.ErrNotTaken) {
		t.Errorf("a socket without a port is ready to deliver: %v", err)
	}
	if err := unix.Connect(fd, sockaddr(port(client4, 1))); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("a delivery of a socket without a port: %v", err)
	}
	l.noDeliveries()
}

func TestDeliveryAfterAFailedOne(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	l.serve(l.pod, port(pod4, 8080))
	fd := l.deliverySocket(port(client4, 40001), 8080)
	if err := unix.Connect(fd, sockaddr(port(netip.MustParseAddr("224.0.0.1"), 1))); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("a delivery from a multicast address: %v", err)
	}
	must(t, unix.Connect(fd, sockaddr(port(client4, 40001))))
	if n := l.deliveries(); n != 2 {
		t.Errorf("%d entries of the delivery, want 2", n)
	}
	must(t, unix.Close(fd))
	l.noDeliveries()
}

func TestConflictingDelivery(t *testing.T) {
	l := newLab(t, modes(policy.Permissive, nil))
	l.serve(l.pod, port(pod4, 8080))
	first, err := l.deliver(port(client4, 40001), 8080)
	must(t, err)
	greeting(t, first)
	if _, err := l.deliver(port(client4, 40001), 8080); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("second delivery of the same client: %v", err)
	}
	echo(t, first, "undisturbed")
	plain, err := l.dial(l.client, port(client4, 40002), port(pod4, 8080))
	must(t, err)
	greeting(t, plain)
	if _, err := l.deliver(port(client4, 40002), 8080); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("delivery for a client with a plaintext connection: %v", err)
	}
	echo(t, plain, "undisturbed")
	first.Close()
	l.noDeliveries()
}

func TestSpoofedDeliveryIsDropped(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	for _, a := range []struct{ pod, client netip.Addr }{{pod4, client4}, {pod6, client6}} {
		l.serve(l.pod, port(a.pod, 8080))
		c, err := l.deliver(port(a.client, 40001), 8080)
		must(t, err)
		greeting(t, c)
		before := l.counter("spoofed_delivery_dropped")
		fd := l.socket(l.client, map[bool]int{true: unix.AF_INET, false: unix.AF_INET6}[a.client.Is4()])
		defer unix.Close(fd)
		must(t, unix.SetNonblock(fd, true))
		must(t, unix.Bind(fd, sockaddr(port(a.client, 40001))))
		if err := unix.Connect(fd, sockaddr(port(a.pod, 8080))); !errors.Is(err, unix.EINPROGRESS) {
			t.Fatalf("connect: %v", err)
		}
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if n, err := unix.Poll(poll, 200); n != 0 || err != nil {
			t.Errorf("the forged connection got an answer: %v, %v", poll, err)
		}
		if l.counter("spoofed_delivery_dropped") == before {
			t.Error("no drop counted")
		}
		echo(t, c, "undisturbed")
		c.Close()
	}
	l.noDeliveries()
}

// spoofIPv4 sends a SYN that claims to be a delivery's, in a shape that hides its ports.
func (l *lab) spoofIPv4(client netip.AddrPort, app uint16, options []byte, fragment uint16) {
	l.t.Helper()
	must(l.t, inNetns(l.client, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		head := 20 + len(options)
		p := make([]byte, head+20)
		p[0], p[8], p[9] = 0x40|byte(head/4), 64, unix.IPPROTO_TCP
		p[6], p[7] = byte(fragment>>8), byte(fragment)
		s, d := client.Addr().As4(), pod4.As4()
		copy(p[12:], s[:])
		copy(p[16:], d[:])
		copy(p[20:], options)
		tcp := p[head:]
		tcp[0], tcp[1], tcp[2], tcp[3] = byte(client.Port()>>8), byte(client.Port()), byte(app>>8), byte(app)
		tcp[12], tcp[13] = 5<<4, 0x02
		sum := checksum(s[:], d[:], []byte{0, unix.IPPROTO_TCP, 0, 20}, tcp)
		tcp[16], tcp[17] = byte(sum>>8), byte(sum)
		return unix.Sendto(fd, p, 0, sockaddr(port(pod4, 0)))
	}))
}

func checksum(parts ...[]byte) uint16 {
	sum := uint32(0)
	for _, p := range parts {
		for ; len(p) > 1; p = p[2:] {
			sum += uint32(p[0])<<8 | uint32(p[1])
		}
	}
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum>>16 + sum)
}

// spoofIPv6 does the same with an extension header before TCP.
func (l *lab) spoofIPv6(client netip.AddrPort, app uint16) {
	l.t.Helper()
	must(l.t, inNetns(l.client, func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		p := make([]byte, 40+8+20)
		p[0], p[5], p[6], p[7] = 0x60, 28, unix.IPPROTO_DSTOPTS, 64
		s, d := client.Addr().As16(), pod6.As16()
		copy(p[8:], s[:])
		copy(p[24:], d[:])
		p[40], p[42], p[43] = unix.IPPROTO_TCP, 1, 4 // padding
		tcp := p[48:]
		tcp[0], tcp[1], tcp[2], tcp[3] = byte(client.Port()>>8), byte(client.Port()), byte(app>>8), byte(app)
		tcp[12], tcp[13] = 5<<4, 0x02
		return unix.Sendto(fd, p, 0, sockaddr(port(pod6, 0)))
	}))
}

func TestSpoofedDeliveryCannotHide(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	l.serve(l.pod, port(pod4, 8080))
	l.serve(l.pod, port(pod6, 8080))
	client := port(client4, 40001)
	c, err := l.deliver(client, 8080)
	must(t, err)
	greeting(t, c)
	_, err = l.deliver(port(client6, 40001), 8080)
	must(t, err)
	l.spoofIPv4(client, 8080, []byte{1, 1, 1, 0}, 0)
	eventually(t, "a SYN with IP options is dropped", func() bool { return l.counter("spoofed_delivery_dropped") == 1 })
	l.spoofIPv4(client, 8080, nil, 0x2000)
	eventually(t, "a fragment is dropped", func() bool { return l.counter("unreadable_dropped") == 1 })
	l.spoofIPv6(port(client6, 40001), 8080)
	eventually(t, "a SYN behind an extension header is dropped", func() bool { return l.counter("spoofed_delivery_dropped") == 2 })
	l.spoofIPv4(port(pod4, 1), 8080, nil, 0)
	eventually(t, "the pod's own address is dropped", func() bool { return l.counter("spoofed_source_dropped") == 1 })
	echo(t, c, "undisturbed")
}

func TestClosePlaintextLeavesDeliveries(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	l.serve(l.pod, port(pod4, 8080))
	c, err := l.deliver(port(client4, 40001), 8080)
	must(t, err)
	greeting(t, c)
	n, err := l.d.ClosePlaintext(l.pod, l.w.Cookie, func(uint16) bool { return true })
	if err != nil || n != 0 {
		t.Errorf("closed %d, %v", n, err)
	}
	echo(t, c, "still there")
}
