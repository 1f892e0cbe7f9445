package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"

	"golang.org/x/time/rate"

	"github.com/culvert-mesh/culvert/agent/enroll/cni"
)

// Listener is the unix socket, for root alone.
type Listener struct {
	*net.UnixListener
	path string
	own  os.FileInfo
}

// Listen listens on path, with mode 0600. The folder must exist. What is there under that name is replaced: that only one
// agent runs on a node is settled before it comes here.
func Listen(path string) (*Listener, error) {
	l, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("admin socket %s: %w", path, err)
	}
	return l, nil
}

func listen(path string) (*Listener, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("there is a file of another kind (%s)", info.Mode())
	}
	// It gets its name when it has its mode. A client that finds it sooner is looked at all the same.
	temporary := path + ".new"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // it would unlink the temporary name
	own, err := os.Lstat(temporary)
	if err == nil {
		err = os.Chmod(temporary, 0o600)
	}
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		_ = os.Remove(temporary)
		return nil, errors.Join(err, l.Close())
	}
	return &Listener{UnixListener: l, path: path, own: own}, nil
}

// Close removes the socket, unless a successor's is there already.
func (l *Listener) Close() error {
	err := l.UnixListener.Close()
	if now, statErr := os.Lstat(l.path); statErr == nil && os.SameFile(now, l.own) {
		err = errors.Join(err, os.Remove(l.path))
	}
	return err
}

// rootOnly closes connections of other users, and has only so many open at a time; others wait in the backlog.
type rootOnly struct {
	*Listener
	ctx   context.Context
	log   *slog.Logger
	limit *rate.Limiter // of what is logged
	slots chan struct{}
}

// Accept implements net.Listener. Whoever accepts closes the connection, which gives its slot back.
func (r *rootOnly) Accept() (net.Conn, error) {
	select {
	case r.slots <- struct{}{}:
	case <-r.ctx.Done():
		return nil, net.ErrClosed
	}
	for {
		conn, err := r.AcceptUnix()
		if err != nil {
			<-r.slots
			return nil, err
		}
		uid, err := cni.PeerUID(conn)
		if err == nil && uid == 0 {
			return &slotConn{UnixConn: conn, slots: r.slots}, nil
		}
		if r.limit.Allow() {
			r.log.Warn("admin socket: another user than root refused", "uid", uid, "error", err)
		}
		_ = conn.Close()
	}
}
