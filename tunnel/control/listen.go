package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse reports that somebody listens on the path already.
var ErrInUse = errors.New("another agent answers on it")

// ListenOptions says who may connect besides the owner of the agent's process.
type ListenOptions struct {
	UID, GID int // owner of the socket file; negative leaves it as it is
}

// Listener accepts tunnels.
type Listener struct {
	unix *net.UnixListener
	path string
}

// Listen listens on path, whose folder must exist. A socket file that nobody answers on is taken to be
// left over and is replaced; one that is answered on, and a file that is no socket, are left alone.
func Listen(path string, options ListenOptions) (*Listener, error) {
	if info, err := os.Stat(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("control socket folder: %w", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("control socket folder %s: not a folder", filepath.Dir(path))
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network})
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	// The file is removed by hand: by the time this listener closes, a successor may own the path.
	l.SetUnlinkOnClose(false)
	if err := allow(path, options); err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(path))
	}
	return &Listener{unix: l, path: path}, nil
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("control socket %s: there is a file of another kind (%s)", path, info.Mode())
	}
	c, err := net.DialTimeout(network, path, time.Second)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("control socket %s: %w", path, ErrInUse)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("control socket %s: cannot tell whether it is in use: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("control socket left over: %w", err)
	}
	return nil
}

// allow narrows the file's mode first: at no time may anyone connect who must not.
func allow(path string, options ListenOptions) error {
	if err := os.Chmod(path, 0o660); err != nil {
		return fmt.Errorf("control socket mode: %w", err)
	}
	if options.UID < 0 && options.GID < 0 {
		return nil
	}
	if err := os.Lchown(path, options.UID, options.GID); err != nil {
		return fmt.Errorf("control socket owner: %w", err)
	}
	return nil
}

// Accept waits for the next tunnel, until ctx ends. Calls must not overlap.
func (l *Listener) Accept(ctx context.Context) (*Conn, error) {
	if err := l.unix.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("control accept: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = l.unix.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c, err := l.unix.AcceptUnix()
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("control accept: %w", err)
	}
	return newConn(c), nil
}

// Close stops listening and removes the socket file, unless another listener has replaced it.
func (l *Listener) Close() error {
	// Nobody answers on the path from here on, if it is ours.
	err := l.unix.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	if staleErr := removeStale(l.path); staleErr != nil && !errors.Is(staleErr, ErrInUse) {
		err = errors.Join(err, staleErr)
	}
	return err
}

// Dial connects to the agent that listens on path.
func Dial(ctx context.Context, path string) (*Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, path)
	if err != nil {
		return nil, fmt.Errorf("control dial: %w", err)
	}
	return newConn(c.(*net.UnixConn)), nil
}
