package datapath

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/policy"
)

const churners, rounds = 8, 200

// readLine reads what the other side says before it closes, from a blocking descriptor.
func readLine(fd int) (string, error) {
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(wait / time.Second)})
	b := make([]byte, 100)
	n, err := unix.Read(fd, b)
	return strings.TrimSpace(string(b[:max(n, 0)])), err
}

// Few source ports, quickly used again, half of them after a reset: the case in which a destination could be mixed up.
func TestRedirectsUnderChurn(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	v4, _ := l.outbound()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := v4.AcceptTCP()
			if err != nil {
				return
			}
			if to, err := destination(c); err == nil {
				fmt.Fprintln(c, to)
			}
			c.Close()
		}
	})
	var clients sync.WaitGroup
	for i := range churners {
		clients.Go(func() {
			for n := range rounds {
				to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 77, byte(i), byte(n)}), uint16(1000+n))
				if err := l.oneRedirect(to, port(pod4, uint16(20000+i*16+n%16)), n%2 == 0); err != nil {
					t.Errorf("%s: %v", to, err)
				}
			}
		})
	}
	clients.Wait()
	v4.Close()
	wg.Wait()
}

func (l *lab) oneRedirect(to, from netip.AddrPort, reset bool) error {
	fd := l.socket(l.pod, unix.AF_INET)
	defer unix.Close(fd)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	if err := unix.Bind(fd, sockaddr(from)); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := unix.Connect(fd, sockaddr(to)); err != nil || reset {
		return err
	}
	got, err := readLine(fd)
	if err == nil && got != to.String() {
		err = fmt.Errorf("the tunnel saw %q", got)
	}
	return err
}

func TestDeliveriesUnderChurn(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	l.serve(l.pod, port(pod4, 8080))
	var clients sync.WaitGroup
	for i := range churners {
		clients.Go(func() {
			for n := range rounds {
				client := port(remote4, uint16(20000+i*16+n%16))
				if err := l.oneDelivery(client, n%2 == 0); err != nil {
					t.Errorf("%s, round %d: %v", client, n, err)
				}
			}
		})
	}
	clients.Wait()
	l.noDeliveries()
	t.Logf("%d deliveries, %d ended", l.counter("delivery_started"), l.counter("delivery_ended"))
}

func (l *lab) oneDelivery(client netip.AddrPort, reset bool) error {
	fd := l.deliverySocket(client, 8080)
	f := os.NewFile(uintptr(fd), "delivery")
	defer f.Close()
	if reset {
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	// The application may still hold the end of the round before.
	var err error
	for end := time.Now().Add(wait); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if err = unix.Connect(fd, sockaddr(client)); err != unix.EADDRINUSE {
			break
		}
	}
	if err != nil {
		return err
	}
	got, err := readLine(fd)
	if err == nil && got != client.String() {
		err = fmt.Errorf("the application saw %q", got)
	}
	return err
}
