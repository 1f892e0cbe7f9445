package enroll

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// nsGetNSType is NS_GET_NSTYPE of linux/nsfs.h, Linux 4.11.
const nsGetNSType = 0xb703

// ErrNotThePod says that a network namespace does not carry the addresses of the pod it is claimed for.
var ErrNotThePod = errors.New("network namespace does not carry the pod's addresses")

// ErrNotRunning says that the container runtime has no ready sandbox for a pod: not yet, or no more.
var ErrNotRunning = errors.New("container runtime has no ready sandbox for it")

// Netns is the network namespace of one pod, proved to be that pod's. It does not keep the pod alive in any
// way that the container runtime would notice, but the namespace itself stays until Close.
type Netns struct {
	path string // empty when it was handed over as an open file
	file *os.File
}

// OpenNetns opens the namespace at path and checks it before anyone uses it: that it is a network
// namespace, not the agent's own, and that all of addresses are configured in it.
func OpenNetns(path string, addresses []netip.Addr) (*Netns, error) {
	// Not to hang on what is no namespace but a pipe.
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	return prove(&Netns{path: path, file: file}, addresses)
}

// NewNetns is OpenNetns for a namespace that is open already. It takes the file over, and closes it when the
// namespace is not the pod's.
func NewNetns(file *os.File, addresses []netip.Addr) (*Netns, error) {
	return prove(&Netns{file: file}, addresses)
}

func prove(n *Netns, addresses []netip.Addr) (*Netns, error) {
	if err := n.check(addresses); err != nil {
		n.file.Close()
		return nil, fmt.Errorf("network namespace %s: %w", n, err)
	}
	return n, nil
}

// String is the path that the namespace was opened by.
func (n *Netns) String() string { return n.file.Name() }

func (n *Netns) check(addresses []netip.Addr) error {
	kind, err := unix.IoctlRetInt(int(n.file.Fd()), nsGetNSType)
	if err != nil || kind != unix.CLONE_NEWNET {
		return errors.New("is not a network namespace")
	}
	own, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		return fmt.Errorf("own namespace: %w", err)
	}
	its, err := n.file.Stat()
	if err != nil {
		return err
	}
	if os.SameFile(own, its) {
		return errors.New("is the agent's own: host network pods cannot be enrolled")
	}
	if len(addresses) == 0 {
		return errors.New("pod has no addresses yet")
	}
	var have []netip.Addr
	if err := n.do(func() (err error) { have, err = configuredAddresses(); return err }); err != nil {
		return err
	}
	for _, a := range addresses {
		if !slices.Contains(have, a.Unmap()) {
			return fmt.Errorf("%w: %s is not among %v", ErrNotThePod, a, have)
		}
	}
	return nil
}

func configuredAddresses() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("addresses: %w", err)
	}
	var have []netip.Addr
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			have = append(have, p.Addr().Unmap())
		}
	}
	return have, nil
}

// File is the open namespace; it stays n's.
func (n *Netns) File() *os.File { return n.file }

// Duplicate returns the open namespace once more, for those who may go on when n is closed.
func (n *Netns) Duplicate() (*os.File, error) {
	fd, err := unix.FcntlInt(n.file.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", n, err)
	}
	return os.NewFile(uintptr(fd), n.String()), nil
}

// Present reports whether the path still leads to this namespace. A namespace whose name is gone has no pod
// any more, even though the sockets in it keep it alive. Of one that was handed over open the end is not seen here.
func (n *Netns) Present() bool {
	if n.path == "" {
		return true
	}
	now, err := os.Stat(n.path)
	if err != nil {
		return false
	}
	its, err := n.file.Stat()
	return err == nil && os.SameFile(now, its)
}

// Close gives up the namespace.
func (n *Netns) Close() error { return n.file.Close() }

// Listen makes a listening socket on the namespace's loopback address, where nothing outside the pod can reach
// it: connections come by way of sk_lookup alone. It prefers the given port, which Istio reserves as well, and
// takes any other when an application of the pod has it.
func (n *Netns) Listen(ipv6 bool, port uint16) (*net.TCPListener, error) {
	l, err := n.listen(ipv6, port)
	if errors.Is(err, unix.EADDRINUSE) {
		l, err = n.listen(ipv6, 0)
	}
	return l, err
}

func (n *Netns) listen(ipv6 bool, port uint16) (l *net.TCPListener, err error) {
	network, host := "tcp4", "127.0.0.1"
	if ipv6 {
		network, host = "tcp6", "::1"
	}
	// Go listens with MPTCP by default, and a sockhash takes plain TCP only.
	config := net.ListenConfig{KeepAlive: -1}
	config.SetMultipathTCP(false)
	address := net.JoinHostPort(host, fmt.Sprint(port))
	err = n.do(func() error {
		any, err := config.Listen(context.Background(), network, address)
		if err != nil {
			return fmt.Errorf("listen in %s: %w", n, err)
		}
		l = any.(*net.TCPListener)
		return nil
	})
	return l, err
}

// Sockets makes count unconnected, non-blocking TCP sockets inside the namespace.
func (n *Netns) Sockets(ipv6 bool, count int) ([]*os.File, error) {
	family := unix.AF_INET
	if ipv6 {
		family = unix.AF_INET6
	}
	files := make([]*os.File, 0, count)
	err := n.do(func() error {
		for range count {
			fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("socket in %s: %w", n, err)
			}
			files = append(files, os.NewFile(uintptr(fd), "tcp"))
		}
		return nil
	})
	if err != nil && len(files) == 0 {
		return nil, err
	}
	return files, nil
}

// HasIPv6 reports whether sockets of that family can be made and bound in the namespace.
func (n *Netns) HasIPv6() bool {
	have := false
	_ = n.do(func() error {
		all, err := configuredAddresses()
		have = slices.ContainsFunc(all, func(a netip.Addr) bool { return a.Is6() && a.IsLoopback() })
		return err
	})
	return have
}

// do runs f on a thread inside the namespace. The thread ends with the goroutine, because it is never
// unlocked: none that could later run other code is left behind in a pod.
func (n *Netns) do(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread never ends, and /proc/self is what it sees: keep it out of the pod.
			// While this goroutine holds it, the next one gets another.
			result <- n.do(f)
			runtime.UnlockOSThread()
			return
		}
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			result <- enterError(err)
			return
		}
		result <- f()
	}()
	return <-result
}

func enterError(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("enter: %w (needs CAP_SYS_ADMIN)", err)
	}
	return fmt.Errorf("enter: %w", err)
}
