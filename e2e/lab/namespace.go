package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 keeps named namespaces, so `ip netns` shows those of the lab.
const netnsDir = "/run/netns"

func makeNetnsDir(r *record) error {
	if _, err := os.Stat(netnsDir); err == nil {
		return nil
	}
	if err := r.update(func(s *state) { s.NetnsDir = true }); err != nil {
		return err
	}
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("lab: make %s: %w", netnsDir, err)
	}
	return nil
}

// makeNamespace makes a named network namespace with the settings all of the lab shares.
func (l *Lab) makeNamespace(name string, forward bool) (string, error) {
	if err := l.record.update(func(s *state) { s.Namespaces = append(s.Namespaces, name) }); err != nil {
		return "", err
	}
	err := onOwnThread(func() error {
		h, err := netns.NewNamed(name)
		if err != nil {
			return err
		}
		defer h.Close()
		return setSysctls(forward)
	})
	if err != nil {
		return "", fmt.Errorf("lab: make network namespace %s: %w", name, err)
	}
	return filepath.Join(netnsDir, name), nil
}

// setSysctls prepares the namespace of the calling thread, before it has interfaces.
// Duplicate address detection would keep IPv6 addresses unusable for a second or two, and what a
// machine inherits (rp_filter, disable_ipv6) must not decide whether the lab works.
func setSysctls(forward bool) error {
	type setting struct{ name, value string }
	var settings []setting
	if forward { // first, because it resets others
		settings = append(settings, setting{"ipv4/ip_forward", "1"}, setting{"ipv6/conf/all/forwarding", "1"})
	}
	for _, scope := range []string{"all", "default"} {
		settings = append(settings,
			setting{"ipv4/conf/" + scope + "/rp_filter", "0"},
			setting{"ipv6/conf/" + scope + "/disable_ipv6", "0"},
			setting{"ipv6/conf/" + scope + "/accept_dad", "0"},
			setting{"ipv6/conf/" + scope + "/accept_ra", "0"})
	}
	for _, s := range settings {
		// /proc/sys/net is that of the thread that opens it.
		if err := os.WriteFile("/proc/sys/net/"+s.name, []byte(s.value), 0); err != nil {
			return fmt.Errorf("sysctl: %w", err)
		}
	}
	return nil
}

func deleteNamespace(name string) error {
	path := filepath.Join(netnsDir, name)
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // EINVAL: made, not yet mounted
		return fmt.Errorf("unmount network namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", name, err)
	}
	return nil
}

// inNamespace runs fn on a thread inside the network namespace of that path. What fn opens, and
// processes it starts, are in there; goroutines it starts are not.
func inNamespace(path string, fn func() error) error {
	h, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("lab: open network namespace %s: %w", path, err)
	}
	defer h.Close()
	return onOwnThread(func() error {
		if err := netns.Set(h); err != nil {
			return fmt.Errorf("lab: enter network namespace %s: %w", path, err)
		}
		return fn()
	})
}

// onOwnThread runs fn, which may change the thread's network namespace, and puts that back. A thread
// for which this fails is not given back to the runtime: it ends together with its goroutine.
func onOwnThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("lab: own network namespace: %w", err)
			return
		}
		defer home.Close()
		err = fn()
		if back := netns.Set(home); back != nil {
			result <- errors.Join(err, fmt.Errorf("lab: leave network namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
		result <- err
	}()
	return <-result
}
