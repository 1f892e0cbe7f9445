package datapath

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/agent/datapath/flows"
	"github.com/culvert-mesh/culvert/bpf"
	"github.com/culvert-mesh/culvert/policy"
)

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func echo(t *testing.T, c net.Conn, text string) {
	t.Helper()
	c.SetDeadline(time.Now().Add(wait))
	if _, err := io.WriteString(c, text); err != nil {
		t.Errorf("write to %s: %v", c.RemoteAddr(), err)
		return
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != text {
		t.Errorf("echo of %s: %q, %v", c.RemoteAddr(), b, err)
	}
}

// outbound puts the listeners of the tunnel into the pod.
func (l *lab) outbound() (v4, v6 *net.TCPListener) {
	l.t.Helper()
	v4, v6 = l.listen(l.pod, port(pod4, 0)), l.listen(l.pod, port(pod6, 0))
	must(l.t, l.d.SetListener(l.w.Cookie, OutboundIPv4, v4))
	must(l.t, l.d.SetListener(l.w.Cookie, OutboundIPv6, v6))
	return v4, v6
}

func accept(t testing.TB, ln *net.TCPListener) *net.TCPConn {
	t.Helper()
	ln.SetDeadline(time.Now().Add(wait))
	c, err := ln.AcceptTCP()
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func TestRedirect(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	v4, v6 := l.outbound()
	for _, tt := range []struct {
		to netip.AddrPort
		ln *net.TCPListener
	}{{port(remote4, 80), v4}, {port(remote6, 443), v6}} {
		c, err := l.dial(l.pod, netip.AddrPort{}, tt.to)
		must(t, err)
		if c.RemoteAddr().String() != tt.to.String() {
			t.Errorf("the application sees the peer %s, want %s", c.RemoteAddr(), tt.to)
		}
		got, err := destination(accept(t, tt.ln))
		if err != nil || got != tt.to {
			t.Errorf("original destination %s, %v, want %s", got, err, tt.to)
		}
	}
}

func (l *lab) socket(ns *os.File, family int) int {
	l.t.Helper()
	fd := -1
	must(l.t, inNetns(ns, func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	return fd
}

func TestRedirectOfMappedAddress(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	v4, _ := l.outbound()
	fd := l.socket(l.pod, unix.AF_INET6)
	defer unix.Close(fd)
	must(t, unix.Connect(fd, &unix.SockaddrInet6{Port: 80, Addr: remote4.As16()}))
	got, err := destination(accept(t, v4))
	if err != nil || got != port(remote4, 80) {
		t.Errorf("original destination %s, %v", got, err)
	}
	peer, err := unix.Getpeername(fd)
	must(t, err)
	if p := peer.(*unix.SockaddrInet6); p.Addr != remote4.As16() || p.Port != 80 {
		t.Errorf("the application sees the peer %v", p)
	}
}

func TestManyRedirectsKeepTheirDestinations(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	v4, _ := l.outbound()
	for i := range 2000 {
		to := port(remote4, uint16(1000+i))
		c, err := l.dial(l.pod, port(pod4, uint16(30000+i%50)), to)
		if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EADDRINUSE) {
			continue // two destinations met on one virtual port
		}
		must(t, err)
		a := accept(t, v4)
		got, err := destination(a)
		if err != nil || got != to {
			t.Fatalf("original destination %s, %v, want %s", got, err, to)
		}
		c.SetLinger(0)
		c.Close()
		a.Close()
	}
}

func TestNotRedirected(t *testing.T) {
	l := newLab(t, modes(policy.Permissive, nil))
	l.outbound()
	l.serve(l.client, port(client4, 8080))
	c, err := l.dial(l.pod, netip.AddrPort{}, port(client4, 8080)) // not captured
	must(t, err)
	echo(t, c, greeting(t, c))

	must(t, l.d.SetCaptured([]netip.Prefix{netip.PrefixFrom(client4, 32)}))
	fd := l.socket(l.pod, unix.AF_INET)
	defer unix.Close(fd)
	must(t, l.d.Exempt(fd))
	must(t, unix.Connect(fd, &unix.SockaddrInet4{Port: 8080, Addr: client4.As4()}))
	b := make([]byte, 100)
	if n, err := unix.Read(fd, b); err != nil || n == 0 {
		t.Errorf("exempt socket: %d, %v", n, err)
	}
}

func TestVirtualPortsBelongToTheApplicationToo(t *testing.T) {
	l := newLab(t, modes(policy.Permissive, nil))
	l.outbound()
	for _, a := range []netip.Addr{pod4, pod6} {
		l.serve(l.pod, port(a, 0x3b17))
		l.passes(port(a, 0x3b17))
		c, err := l.dial(l.pod, netip.AddrPort{}, port(a, 0x3b17))
		must(t, err)
		greeting(t, c)
	}
	must(t, l.d.SetPolicy(l.w.Cookie, modes(policy.Strict, nil)))
	l.refused(port(pod4, 0x3b17))
}

func TestListenerGoneRefuses(t *testing.T) {
	l := newLab(t, modes(policy.Permissive, nil))
	v4, v6 := l.outbound()
	v4.Close()
	v6.Close()
	for _, to := range []netip.AddrPort{port(remote4, 80), port(remote6, 80)} {
		if _, err := l.dial(l.pod, netip.AddrPort{}, to); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("connect to %s: %v, want it refused", to, err)
		}
	}
}

func TestReconnectForgetsTheDestination(t *testing.T) {
	l := newLab(t, modes(policy.Permissive, nil))
	v4, _ := l.outbound()
	l.serve(l.client, port(client4, 8080))
	fd := l.socket(l.pod, unix.AF_INET)
	defer unix.Close(fd)
	must(t, unix.Connect(fd, &unix.SockaddrInet4{Port: 80, Addr: remote4.As4()}))
	if _, err := destination(accept(t, v4)); err != nil {
		t.Error(err)
	}
	must(t, disconnect(fd))
	must(t, unix.Connect(fd, &unix.SockaddrInet4{Port: 8080, Addr: client4.As4()}))
	peer, err := unix.Getpeername(fd)
	must(t, err)
	if p := peer.(*unix.SockaddrInet4); p.Addr != client4.As4() {
		t.Errorf("the peer is still %v", p)
	}
}

func TestForeignConnectionHasNoDestination(t *testing.T) {
	l := newLab(t, modes(policy.Permissive, nil))
	ln := l.listen(l.pod, port(pod4, 8080))
	_, err := l.dial(l.client, netip.AddrPort{}, port(pod4, 8080))
	must(t, err)
	if _, err := destination(accept(t, ln)); !errors.Is(err, flows.ErrNoDestination) {
		t.Errorf("got %v", err)
	}
}

func TestAbandonedRedirectCatchesNothing(t *testing.T) {
	l := newLab(t, modes(policy.Permissive, nil))
	l.outbound()
	// As an attempt leaves it whose handshake never ended.
	const virtual = 0x3b42
	k := bpf.MapsRedirectKey{Cookie: l.w.Cookie, Ip: bpf.Words(pod4), SourcePort: 31000, VirtualPort: virtual}
	must(t, l.d.maps.Redirects.Update(k, bpf.MapsEndpoint{}, ebpf.UpdateAny))
	l.serve(l.pod, port(pod4, virtual))
	c, err := l.dial(l.pod, port(pod4, 31000), port(pod4, virtual))
	must(t, err)
	greeting(t, c)
}
