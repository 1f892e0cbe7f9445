package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse reports that another agent listens on the path.
var ErrInUse = errors.New("another agent listens on it")

// Listener is where plugins connect.
type Listener struct {
	unix *net.UnixListener
	path string
	lock *os.File
}

// Listen listens on path, with mode 0600. The folder must exist.
//
// A lock on path.lock, held as long as the listener lives, says that the socket is in use. The kernel drops it
// when its owner dies, so whoever gets it knows that a socket file which is there is left over, and only
// has to ask in case somebody without the lock made it. The new socket appears under the path when it is
// ready, by a rename: a plugin finds the old one, or one that listens, or (before the first start) none.
func Listen(path string) (*Listener, error) {
	lock, err := takeLock(path + ".lock")
	if err != nil {
		return nil, fmt.Errorf("CNI socket %s: %w", path, err)
	}
	l, err := listenUnder(path)
	if err != nil {
		_ = os.Remove(lock.Name())
		_ = lock.Close()
		return nil, fmt.Errorf("CNI socket %s: %w", path, err)
	}
	return &Listener{unix: l, path: path, lock: lock}, nil
}

func listenUnder(path string) (*net.UnixListener, error) {
	if err := checkStale(path); err != nil {
		return nil, err
	}
	// The holder of the lock is alone, so the name needs no number, and what is there is left over.
	temporary := path + ".new"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix(network, &net.UnixAddr{Name: temporary, Net: network})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // it would unlink the temporary name
	err = os.Chmod(temporary, 0o600)
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		_ = l.Close()
		_ = os.Remove(temporary)
		return nil, err
	}
	return l, nil
}

// checkStale returns an error unless there is nothing under the path, or a socket that nobody answers on.
func checkStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("there is a file of another kind (%s)", info.Mode())
	}
	c, err := net.DialTimeout(network, path, time.Second)
	if err == nil {
		_ = c.Close()
		return ErrInUse
	}
	if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot tell whether it is in use: %w", err)
	}
	return nil
}

// takeLock makes and locks the file. A lock on a file that its owner has removed meanwhile is worth nothing: then
// it begins again.
func takeLock(path string) (*os.File, error) {
	for range 10 {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		if err := flock(f); err != nil {
			_ = f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, ErrInUse
			}
			return nil, fmt.Errorf("lock: %w", err)
		}
		held, heldErr := f.Stat()
		now, nowErr := os.Lstat(path)
		if heldErr == nil && nowErr == nil && os.SameFile(held, now) {
			return f, nil
		}
		_ = f.Close()
	}
	return nil, ErrInUse
}

func flock(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var lockErr error
	if err := raw.Control(func(fd uintptr) {
		lockErr = unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB)
	}); err != nil {
		return err
	}
	return lockErr
}

// Close stops listening and removes the socket. What Serve is still doing is not touched.
func (l *Listener) Close() error {
	err := l.unix.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	// Nobody answers on the path now if it is still ours, and the lock keeps others from making it theirs.
	if checkStale(l.path) == nil {
		if removeErr := os.Remove(l.path); !errors.Is(removeErr, fs.ErrNotExist) {
			err = errors.Join(err, removeErr)
		}
	}
	return errors.Join(err, os.Remove(l.lock.Name()), l.lock.Close())
}
