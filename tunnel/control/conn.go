// Package control is the protocol between an agent and its tunnel: one protobuf message per datagram of a
// unix SOCK_SEQPACKET socket, with file descriptors beside it.
//
// The agent listens and the tunnel dials, so that either may be restarted on its own. A datagram socket
// keeps a message and its descriptors together, which a stream does not: a reader that lost its place in
// a stream would give one pod's sockets to another.
package control

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

const (
	// Version is the version of the protocol that this package speaks.
	Version = 1
	// MaxMessage bounds a message. A datagram must fit the socket's send buffer, 208 KiB by default.
	MaxMessage = 192 << 10
	// MaxFiles bounds the descriptors of one message. The kernel's own bound is 253.
	MaxFiles = 200

	sendTimeout = 5 * time.Second
	network     = "unixpacket"
)

var (
	// ErrTooLarge reports a message above MaxMessage, or with more than MaxFiles descriptors.
	ErrTooLarge = errors.New("control message too large")
	// ErrTruncated reports a message of which the kernel cut off bytes or descriptors.
	ErrTruncated = errors.New("control message truncated")
)

// Conn is one end of a connection between an agent and a tunnel. Sending is safe for concurrent use and
// independent of receiving; one goroutine at a time may receive.
type Conn struct {
	unix *net.UnixConn

	sendMu sync.Mutex

	buffer []byte // of the receiver
	oob    []byte
}

func newConn(c *net.UnixConn) *Conn {
	return &Conn{
		unix: c,
		// One byte more than allowed: a longer datagram is then seen as such, whatever the kernel's flags say.
		buffer: make([]byte, MaxMessage+1),
		oob:    make([]byte, unix.CmsgSpace(4*MaxFiles)),
	}
}

// Send sends one message and its descriptors, which stay the caller's. It gives up after five seconds, so
// that a peer that does not read cannot block the sender for ever; the connection is of no use then.
func (c *Conn) Send(m proto.Message, files ...*os.File) error {
	if len(files) > MaxFiles {
		return fmt.Errorf("%w: %d descriptors, at most %d", ErrTooLarge, len(files), MaxFiles)
	}
	data, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("control message: %w", err)
	}
	defer clear(data) // there may be a key in it
	if len(data) > MaxMessage {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(data), MaxMessage)
	}
	if len(data) == 0 {
		// An empty datagram cannot be told from the end of the connection.
		return errors.New("control message is empty")
	}
	rights, err := rightsOf(files)
	if err != nil {
		return err
	}
	defer runtime.KeepAlive(files)

	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	if err := c.unix.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return fmt.Errorf("control send: %w", err)
	}
	if _, _, err := c.unix.WriteMsgUnix(data, rights, nil); err != nil {
		return fmt.Errorf("control send: %w", err)
	}
	return nil
}

// rightsOf packs descriptors. It does not use File.Fd, which may make a descriptor blocking, and that for
// everyone who shares it.
func rightsOf(files []*os.File) ([]byte, error) {
	if len(files) == 0 {
		return nil, nil
	}
	fds := make([]int, len(files))
	for i, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return nil, fmt.Errorf("control descriptor %d: %w", i, err)
		}
		if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
			return nil, fmt.Errorf("control descriptor %d: %w", i, err)
		}
	}
	return unix.UnixRights(fds...), nil
}

// ReceiveFromAgent receives the agent's next message. The descriptors belong to the caller, also when the
// message is of a kind that it does not know; with an error there are none. io.EOF: the agent has closed.
func (c *Conn) ReceiveFromAgent() (*FromAgent, []*os.File, error) {
	m := new(FromAgent)
	files, err := c.receive(m)
	if err != nil {
		return nil, nil, err
	}
	return m, files, nil
}

// ReceiveFromTunnel receives the tunnel's next message, as ReceiveFromAgent does the agent's.
func (c *Conn) ReceiveFromTunnel() (*FromTunnel, []*os.File, error) {
	m := new(FromTunnel)
	files, err := c.receive(m)
	if err != nil {
		return nil, nil, err
	}
	return m, files, nil
}

func (c *Conn) receive(m proto.Message) ([]*os.File, error) {
	n, oobn, flags, _, err := c.unix.ReadMsgUnix(c.buffer, c.oob)
	defer clear(c.buffer[:max(n, 0)]) // there may be a key in it
	fds, rightsErr := parseRights(c.oob[:oobn])
	err = receiveError(n, flags, err, rightsErr)
	if err == nil {
		if err = proto.Unmarshal(c.buffer[:n], m); err != nil {
			err = fmt.Errorf("control message: %w", err)
		}
	}
	if err != nil {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		return nil, err
	}
	return wrap(fds), nil
}

func receiveError(n, flags int, err, rightsErr error) error {
	switch {
	case errors.Is(err, io.EOF):
		return io.EOF
	case err != nil:
		return fmt.Errorf("control receive: %w", err)
	case n > MaxMessage:
		return fmt.Errorf("%w: above %d bytes", ErrTruncated, MaxMessage)
	case flags&unix.MSG_TRUNC != 0:
		return fmt.Errorf("%w: bytes", ErrTruncated)
	case flags&unix.MSG_CTRUNC != 0:
		return fmt.Errorf("%w: descriptors", ErrTruncated)
	case rightsErr != nil:
		return fmt.Errorf("control descriptors: %w", rightsErr)
	}
	return nil
}

// parseRights returns every descriptor found, also beside an error: the kernel has installed them already,
// and whoever drops them must close them. (package net passes MSG_CMSG_CLOEXEC.)
func parseRights(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	var all []int
	for i := range messages {
		if messages[i].Header.Level != unix.SOL_SOCKET || messages[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, parseErr := unix.ParseUnixRights(&messages[i])
		all = append(all, fds...)
		err = errors.Join(err, parseErr)
	}
	return all, err
}

// wrap turns descriptors into files. Sockets are made non-blocking first, so that deadlines and
// cancellation work on them; anything else (a BPF map) is left as it is.
func wrap(fds []int) []*os.File {
	if len(fds) == 0 {
		return nil
	}
	files := make([]*os.File, len(fds))
	for i, fd := range fds {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
			_ = unix.SetNonblock(fd, true) // on failure the file is a blocking one: slower, not wrong
		}
		files[i] = os.NewFile(uintptr(fd), "control descriptor")
	}
	return files
}

// PeerUID returns the user that the other end ran as when it connected or listened.
func (c *Conn) PeerUID() (uint32, error) {
	raw, err := c.unix.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("control peer: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, fmt.Errorf("control peer: %w", err)
	}
	if credErr != nil {
		return 0, fmt.Errorf("control peer: %w", credErr)
	}
	return cred.Uid, nil
}

// Close closes the connection; what is being sent or received fails. It may be called more than once.
func (c *Conn) Close() error {
	if err := c.unix.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("control close: %w", err)
	}
	return nil
}

// CloseFiles closes descriptors that came with a message and are not wanted.
func CloseFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
