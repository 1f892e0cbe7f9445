// Package flows tells the tunnel where an accepted connection wanted to go, and delivers connections with their
// client's address. It works by map descriptors alone and without a capability (Linux 5.19; below it CAP_BPF is needed).
package flows

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/bpf"
)

// ErrNoDestination says that the kernel knows no original destination: the connection did not come through a redirect.
// Whoever accepted it resets it and does not guess.
var ErrNoDestination = errors.New("no original destination")

// Flows holds the two maps of the unprivileged side. All methods may be called at the same time.
type Flows struct {
	accepted, delivery *ebpf.Map
}

// New takes over both descriptors.
func New(accepted, delivery *os.File) (*Flows, error) {
	a, err := takeMap(accepted)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map of original destinations: %w", err), delivery.Close())
	}
	d, err := takeMap(delivery)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map of deliveries: %w", err), a.Close())
	}
	return &Flows{accepted: a, delivery: d}, nil
}

func takeMap(f *os.File) (*ebpf.Map, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	return ebpf.NewMapFromFD(fd)
}

// OriginalDestination returns where the application that opened c wanted to go.
func (f *Flows) OriginalDestination(c *net.TCPConn) (netip.AddrPort, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var (
		e         bpf.MapsEndpoint
		lookupErr error
	)
	err = raw.Control(func(fd uintptr) {
		lookupErr = f.accepted.Lookup(int32(fd), &e)
		if !errors.Is(lookupErr, ebpf.ErrKeyNotExist) {
			return
		}
		// accept can return while the last step of the handshake still runs on another CPU, with the socket's lock held.
		// TCP_INFO takes that lock, so it returns after that step.
		_, _ = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		lookupErr = f.accepted.Lookup(int32(fd), &e)
	})
	if err != nil {
		return netip.AddrPort{}, err
	}
	if errors.Is(lookupErr, ebpf.ErrKeyNotExist) {
		return netip.AddrPort{}, fmt.Errorf("connection from %s to %s: %w", c.RemoteAddr(), c.LocalAddr(), ErrNoDestination)
	}
	if lookupErr != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", lookupErr)
	}
	return e.AddrPort(), nil
}

// Deliver prepares an exempt socket of a pod, bound to the pod's address and any port: the connect that follows names a
// client, and reaches the application's port as if that client had opened it. The connect fails with EADDRINUSE if the
// application already has a connection with that client's address and port, and with EADDRNOTAVAIL if the socket is not
// bound to the pod's address. The way to the client must lead through the pod's attached interface, which is where the
// packets turn round: a pod with several needs its delivery sockets bound to that one.
func (f *Flows) Deliver(fd int, port uint16) error {
	if err := f.delivery.Update(int32(fd), bpf.MapsDelivery{Port: port}, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("delivery to port %d: %w", port, err)
	}
	return nil
}

// Close closes both descriptors.
func (f *Flows) Close() error { return errors.Join(f.accepted.Close(), f.delivery.Close()) }
