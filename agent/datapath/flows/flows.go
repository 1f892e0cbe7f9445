// Package flows tells the tunnel where an accepted connection wanted to go, and delivers connections with their
// client's address. It asks the kernel by getsockname and bind, which the node's hooks answer: it holds nothing, needs
// no capability and never calls bpf(2), which container runtimes forbid to unprivileged processes.
package flows

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// ErrNoDestination says that the kernel knows no original destination: the connection did not come through a redirect.
// Whoever accepted it resets it and does not guess.
var ErrNoDestination = errors.New("no original destination")

// ErrNotTaken says that no hook answered a bind: the socket must not be connected, because it would reach the client.
var ErrNotTaken = errors.New("the kernel did not take the delivery (the agent's programs are not attached)")

// Flows asks the kernel. All methods may be called at the same time.
type Flows struct{}

// OriginalDestination returns where the application that opened c wanted to go. own are the addresses of the pod that
// c was accepted in: without a destination the kernel tells the socket's own, and to there nothing is redirected.
func (Flows) OriginalDestination(c *net.TCPConn, own []netip.Addr) (netip.AddrPort, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var (
		to      netip.AddrPort
		nameErr error
	)
	// accept can return while the last step of the handshake still runs on another CPU, with the socket's lock held; the
	// answer that c keeps may be older than that step. The kernel takes the lock before it asks the hook.
	if err := raw.Control(func(fd uintptr) { to, nameErr = name(int(fd)) }); err != nil {
		return netip.AddrPort{}, err
	}
	if nameErr != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", nameErr)
	}
	if !redirectable(to.Addr(), own) {
		return netip.AddrPort{}, fmt.Errorf("connection from %s to %s: %w", c.RemoteAddr(), to, ErrNoDestination)
	}
	return to, nil
}

// redirectable says whether the connect hook redirects connections to there. It never does where a socket's own address
// may be: the pod's, behind a virtual port, or loopback, where the listener is bound.
func redirectable(a netip.Addr, own []netip.Addr) bool {
	return !a.IsLoopback() && !a.IsUnspecified() && !a.IsLinkLocalUnicast() && !slices.Contains(own, a)
}

// Deliver binds an exempt socket of a pod: the connect that follows names a client, and reaches app, the pod's address
// and the application's port, as if that client had opened it. The connect fails with EADDRINUSE if the application
// already has a connection with that client's address and port, and with EADDRNOTAVAIL if the address is not the pod's.
// After an error the socket must not be connected. The way to the client must lead through the pod's attached interface,
// which is where the packets turn round: a pod with several needs its delivery sockets bound to that one.
func (Flows) Deliver(fd int, app netip.AddrPort) error {
	if err := deliver(fd, app); err != nil {
		return fmt.Errorf("delivery to %s: %w", app, err)
	}
	return nil
}

func deliver(fd int, app netip.AddrPort) error {
	if app.Port() == 0 {
		return errors.New("no port")
	}
	if err := unix.Bind(fd, sockaddr(app)); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	// The hook has the kernel choose a port. Without it the socket has just taken the application's.
	bound, err := name(fd)
	if err != nil {
		return fmt.Errorf("own address: %w", err)
	}
	if bound.Addr() != app.Addr() || bound.Port() == 0 || bound.Port() == app.Port() {
		return fmt.Errorf("bound to %s: %w", bound, ErrNotTaken)
	}
	return nil
}

// name is what getsockname says, IPv4 never in its IPv6 form.
func name(fd int) (netip.AddrPort, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, err
	}
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port)), nil
	}
	return netip.AddrPort{}, unix.EAFNOSUPPORT
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
