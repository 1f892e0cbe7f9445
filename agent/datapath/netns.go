package datapath

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// inNetns runs f on a thread inside the network namespace.
func inNetns(netns *os.File, f func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", netns.Name(), err)
		}
		return f()
	})
}

// inFreshNetns runs f on a thread inside a network namespace that is gone afterwards.
func inFreshNetns(f func() error) error {
	return onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		return f()
	})
}

// onOwnThread runs f on a thread that is locked and never unlocked, so the runtime discards it with its goroutine: a
// thread that could not be led back would carry the namespace into other goroutines. The main thread is spared,
// because it never ends and would keep the namespace alive.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- onOwnThread(f) // this goroutine holds the main thread, so the next one gets another
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

// NetnsCookie returns the cookie of a network namespace, the key of its workload.
func NetnsCookie(netns *os.File) (uint64, error) {
	var cookie uint64
	err := inNetns(netns, func() (err error) {
		cookie, err = ownNetnsCookie()
		return err
	})
	return cookie, err
}

// ownNetnsCookie is of the namespace that the calling thread is in.
func ownNetnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("network namespace cookie (Linux 5.14): %w", err)
	}
	return cookie, nil
}
