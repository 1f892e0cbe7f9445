package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const connectTimeout = 10 * time.Second

// bindAddress binds a socket of the reserve to an address. The port is chosen at connect, so that it needs
// to be unique only among connections to the same peer. A bind to a port would ask for a delivery.
func bindAddress(f *os.File, source netip.Addr) error {
	return onSocket(f, func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return fmt.Errorf("bind without port: %w", err)
		}
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(source, 0))); err != nil {
			return fmt.Errorf("bind %s: %w", source, err)
		}
		return nil
	})
}

// connectSocket connects a socket and turns it into a connection. The caller closes f in any case.
func connectSocket(ctx context.Context, f *os.File, to netip.AddrPort) (*net.TCPConn, error) {
	c, err := connectUnnamed(ctx, f, to)
	if err != nil {
		return nil, fmt.Errorf("connect %s: %w", to, err)
	}
	return c, nil
}

// connectUnnamed is the same for deliveries, of which errors are not to name the address: it is the client's.
func connectUnnamed(ctx context.Context, f *os.File, to netip.AddrPort) (*net.TCPConn, error) {
	deadline := time.Now().Add(connectTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := f.SetWriteDeadline(deadline); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var connectErr error
	started := false
	err = raw.Write(func(fd uintptr) bool {
		connectErr = connectStep(int(fd), to, &started)
		return !errors.Is(connectErr, unix.EINPROGRESS)
	})
	if err == nil {
		err = connectErr
	}
	if err != nil {
		return nil, errors.Join(err, ctx.Err())
	}
	return tcpConn(f)
}

// connectStep starts a connect or looks how it stands; EINPROGRESS: wait until the socket is writable. An
// unconnected socket counts as writable, hence the question for the peer's name.
func connectStep(fd int, to netip.AddrPort, started *bool) error {
	if !*started {
		*started = true
		switch err := unix.Connect(fd, sockaddr(to)); err {
		case unix.EINPROGRESS, unix.EALREADY, unix.EINTR:
			return unix.EINPROGRESS
		case nil, unix.EISCONN:
			return nil
		default:
			return err
		}
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if code != 0 {
		return unix.Errno(code)
	}
	if _, err := unix.Getpeername(fd); err != nil {
		return unix.EINPROGRESS
	}
	return nil
}

func tcpConn(f *os.File) (*net.TCPConn, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(errors.New("socket is not TCP"), c.Close())
	}
	_ = tcp.SetNoDelay(true)
	return tcp, nil
}

func onSocket(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	var doErr error
	if err := raw.Control(func(fd uintptr) { doErr = do(int(fd)) }); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	return doErr
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// addrPort returns an address of a connection, IPv4 never in its IPv6 form.
func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := tcp.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap().WithZone(""), p.Port())
}
