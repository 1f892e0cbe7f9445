package walk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	captureLimit = 64 << 20 // bytes kept; what comes after counts as lost
	captureQueue = 32 << 20
	maxFrame     = 128 << 10
	loopback     = 1 // its index, in every network namespace
)

// capture records what crosses the interfaces of a node but its loopback, over which kubelet and runtime speak.
type capture struct {
	socket *os.File
	done   chan struct{}
	mu     sync.Mutex
	frames [][]byte
	bytes  int
	lost   int
}

// capture begins to record on a node. It sees every packet from the moment it returns.
func (s *suite) capture(ctx context.Context, node string) (*capture, error) {
	path, err := s.nodeNetns(ctx, node)
	if err != nil {
		return nil, err
	}
	socket, err := packetSocket(path)
	if err != nil {
		return nil, fmt.Errorf("capture on node %s: %w", node, err)
	}
	c := &capture{socket: socket, done: make(chan struct{})}
	go c.read()
	return c, nil
}

// nodeNetns finds the node's network namespace by a process that is in it.
func (s *suite) nodeNetns(ctx context.Context, node string) (string, error) {
	name, err := s.Cluster.Exec(ctx, node, nil, "readlink", "/proc/1/ns/net")
	if err != nil {
		return "", err
	}
	all, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return "", err
	}
	for _, path := range all {
		if there, err := os.Readlink(path); err == nil && there == strings.TrimSpace(name) {
			return path, nil
		}
	}
	return "", fmt.Errorf("network namespace %s of node %s: no process of this machine is in it", strings.TrimSpace(name), node)
}

// packetSocket opens a socket in another network namespace.
func packetSocket(path string) (*os.File, error) {
	type result struct {
		fd  int
		err error
	}
	opened := make(chan result)
	go func() {
		// The thread ends with this goroutine, in the other namespace.
		runtime.LockOSThread()
		there, err := netns.GetFromPath(path)
		if err != nil {
			opened <- result{-1, err}
			return
		}
		defer there.Close()
		if err := netns.Set(there); err != nil {
			opened <- result{-1, err}
			return
		}
		fd, err := openPacket()
		opened <- result{fd, err}
	}()
	r := <-opened
	if r.err != nil {
		return nil, fmt.Errorf("packet socket in %s: %w", path, r.err)
	}
	return os.NewFile(uintptr(r.fd), "packets"), nil
}

func openPacket() (int, error) {
	const all = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00 // in network byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
	if err != nil {
		return -1, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureQueue); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// read records until the socket's deadline passes, and then what is still in the queue.
func (c *capture) read() {
	defer close(c.done)
	raw, err := c.socket.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, maxFrame)
	_ = raw.Read(func(fd uintptr) bool { // it ends by the deadline
		c.drain(int(fd), buf)
		return false
	})
	_ = raw.Control(func(fd uintptr) {
		c.drain(int(fd), buf)
		if s, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			c.mu.Lock()
			c.lost += int(s.Drops)
			c.mu.Unlock()
		}
	})
}

func (c *capture) drain(fd int, buf []byte) {
	for {
		size, from, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		if err != nil {
			return
		}
		if link, ok := from.(*unix.SockaddrLinklayer); ok && link.Ifindex == loopback {
			continue
		}
		c.keep(buf[:size])
	}
}

func (c *capture) keep(frame []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bytes+len(frame) > captureLimit {
		c.lost++
		return
	}
	c.bytes += len(frame)
	c.frames = append(c.frames, bytes.Clone(frame))
}

// stop ends the recording with every packet that was seen before.
func (c *capture) stop() {
	_ = c.socket.SetReadDeadline(time.Unix(1, 0))
	<-c.done
	_ = c.socket.Close()
}

// contains reports whether the marker stood, whole, in one of the packets.
func (c *capture) contains(marker string) bool {
	for _, f := range c.frames {
		if bytes.Contains(f, []byte(marker)) {
			return true
		}
	}
	return false
}
