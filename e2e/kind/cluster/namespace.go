package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// DialContext connects from inside the cluster's network namespace. The address must be an IP address and a port: names are
// the nodes' to resolve. It fits net/http.Transport and the Dial field of client-go's rest.Config.
func (c *Cluster) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var dialer net.Dialer
	if c.Netns() == "" {
		return dialer.DialContext(ctx, network, address)
	}
	// With several addresses the dialer would use goroutines, which are not in the namespace.
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("cluster: dial %s: in the cluster's network namespace only IP addresses can be dialled: %w", address, err)
	}
	var conn net.Conn
	err := inNamespace(c.Netns(), func() (err error) {
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cluster: dial in %s: %w", c.Netns(), err)
	}
	return conn, nil
}

// makeNamespace makes the cluster's network namespace with nothing but loopback.
func makeNamespace(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	err := onOwnThread(func() error {
		h, err := netns.NewNamed(filepath.Base(path))
		if err != nil {
			return err
		}
		defer h.Close()
		if err := allowIPv6(); err != nil {
			return err
		}
		loopback, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(loopback)
	})
	if err != nil {
		return fmt.Errorf("cluster: make network namespace %s: %w", path, err)
	}
	return nil
}

// allowIPv6 undoes what the namespace may have inherited of a machine that switches IPv6 off. The thread is in it.
func allowIPv6() error {
	for _, scope := range []string{"all", "default"} {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+scope+"/disable_ipv6", []byte("0"), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func deleteNamespace(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // EINVAL: made, not yet mounted
		return fmt.Errorf("cluster: unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cluster: %w", err)
	}
	return nil
}

// inNamespace runs fn on a thread in that network namespace.
func inNamespace(path string, fn func() error) error {
	h, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w; is the cluster up?", path, err)
	}
	defer h.Close()
	return onOwnThread(func() error {
		if err := netns.Set(h); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", path, err)
		}
		return fn()
	})
}

// onOwnThread runs fn, which may change its thread's network namespace. A thread that cannot be put back ends with
// its goroutine.
func onOwnThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			result <- fmt.Errorf("own network namespace: %w", err)
			return
		}
		defer home.Close()
		err = fn()
		if back := netns.Set(home); back != nil {
			result <- errors.Join(err, fmt.Errorf("leave the network namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
		result <- err
	}()
	return <-result
}
