package cniconf

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lockPatience is how long one waits for another agent, which needs some milliseconds. Whoever holds the lock
	// for longer is none, and does not keep us from working.
	lockPatience = 2 * time.Second
	lockPause    = 2 * time.Millisecond
)

// lockFolder keeps other agents from editing in the folder until unlock is called. While one agent takes the place of
// another, there are two. The lock is on the folder itself, so that it leaves no file, and ends with
// its process. Whoever else writes there knows nothing of it.
func lockFolder(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	raw, err := d.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	var lockErr error
	for end := time.Now().Add(lockPatience); ; time.Sleep(lockPause) {
		if err := raw.Control(func(fd uintptr) {
			lockErr = unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB)
		}); err != nil {
			return nil, errors.Join(err, d.Close())
		}
		if lockErr == nil || errors.Is(lockErr, unix.EWOULDBLOCK) && time.Now().After(end) {
			return func() { _ = d.Close() }, nil
		}
		if !errors.Is(lockErr, unix.EWOULDBLOCK) && !errors.Is(lockErr, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock of %s: %w", dir, lockErr), d.Close())
		}
	}
}
