package datapath

import (
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/policy"
)

// connecting lists ways to open a connection that go past the plain connect(2) of a TCP socket.
func connecting() map[string]func(to netip.AddrPort) (int, error) {
	return map[string]func(netip.AddrPort) (int, error){
		"multipath TCP": func(to netip.AddrPort) (int, error) {
			return connectSocket(unix.IPPROTO_MPTCP, to, func(fd int, a unix.Sockaddr) error { return unix.Connect(fd, a) })
		},
		"sendto with MSG_FASTOPEN": func(to netip.AddrPort) (int, error) {
			return connectSocket(0, to, func(fd int, a unix.Sockaddr) error {
				return unix.Sendto(fd, []byte("first"), unix.MSG_FASTOPEN, a)
			})
		},
		"TCP_FASTOPEN_CONNECT": func(to netip.AddrPort) (int, error) {
			return connectSocket(0, to, func(fd int, a unix.Sockaddr) error {
				if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1); err != nil {
					return err
				}
				if err := unix.Connect(fd, a); err != nil {
					return err
				}
				_, err := unix.Write(fd, []byte("first"))
				return err
			})
		},
		"with a mark": func(to netip.AddrPort) (int, error) {
			return connectSocket(0, to, func(fd int, a unix.Sockaddr) error {
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 0x539); err != nil {
					return err
				}
				return unix.Connect(fd, a)
			})
		},
	}
}

func connectSocket(protocol int, to netip.AddrPort, connect func(int, unix.Sockaddr) error) (int, error) {
	family := unix.AF_INET
	var address unix.Sockaddr = &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().Unmap().As4()}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, err
	}
	timeout := unix.NsecToTimeval(wait.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout); err != nil {
		return fd, err
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return fd, err
	}
	return fd, connect(fd, address)
}

func connectIn(t *testing.T, ns *os.File, connect func(netip.AddrPort) (int, error), to netip.AddrPort) error {
	t.Helper()
	return inNetns(ns, func() error {
		fd, err := connect(to)
		if fd >= 0 {
			t.Cleanup(func() { unix.Close(fd) })
		}
		return err
	})
}

func TestNoWayToConnectGoesAroundTheTunnel(t *testing.T) {
	for name, connect := range connecting() {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, modes(policy.Strict, nil))
			v4, _ := l.outbound()
			to := port(remote4, 80)
			must(t, connectIn(t, l.pod, connect, to))
			got, err := destination(accept(t, v4))
			if err != nil || got != to {
				t.Errorf("original destination %s, %v, want %s", got, err, to)
			}
		})
	}
}

func TestNoWayToConnectGetsPastStrict(t *testing.T) {
	for name, connect := range connecting() {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, modes(policy.Permissive, nil))
			to := port(pod4, 8080)
			l.serve(l.pod, to)
			if !greeted(t, l.client, connect, to) {
				t.Fatal("no greeting from a PERMISSIVE port")
			}
			must(t, l.d.SetPolicy(l.w.Cookie, modes(policy.Strict, nil)))
			if greeted(t, l.client, connect, to) {
				t.Error("a STRICT port greets")
			}
		})
	}
}

// greeted reports whether the server's first bytes arrive: with Fast Open, connect alone proves nothing.
func greeted(t *testing.T, ns *os.File, connect func(netip.AddrPort) (int, error), to netip.AddrPort) bool {
	t.Helper()
	got := 0
	err := inNetns(ns, func() error {
		fd, err := connect(to)
		if fd >= 0 {
			defer unix.Close(fd)
		}
		if err != nil {
			return err
		}
		got, err = unix.Read(fd, make([]byte, 16))
		return err
	})
	if err != nil {
		t.Logf("%s: %v", to, err)
	}
	return got > 0
}
