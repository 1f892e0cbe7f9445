package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	captureLimit = 64 << 20 // bytes kept; what comes after counts as dropped
	captureQueue = 32 << 20 // bytes in the kernel's queue
	maxFrame     = 128 << 10
)

// Capture records what crosses the links between one node and the others, both directions.
type Capture struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	rec    Recording
}

// Recording is what a Capture saw.
type Recording struct {
	Packets int // recorded
	Dropped int // seen by the kernel and not recorded: "not found" proves nothing unless this is 0
	Bytes   int
	frames  [][]byte
}

// Contains reports whether the marker stood, whole, in one of the packets.
func (r *Recording) Contains(marker string) bool {
	for _, f := range r.frames {
		if bytes.Contains(f, []byte(marker)) {
			return true
		}
	}
	return false
}

// Capture begins to record. It sees every packet from the moment it returns, and ends with Stop or ctx.
func (n *Node) Capture(ctx context.Context) (*Capture, error) {
	n.lab.mu.Lock()
	links := append([]string(nil), n.links...)
	n.lab.mu.Unlock()
	if len(links) == 0 {
		return nil, fmt.Errorf("lab: node %s has no link to another node", n.Name)
	}
	var sockets []*os.File
	for _, link := range links {
		s, err := n.packetSocket(link)
		if err != nil {
			for _, open := range sockets {
				err = errors.Join(err, open.Close())
			}
			return nil, fmt.Errorf("lab: capture on %s of node %s: %w", link, n.Name, err)
		}
		sockets = append(sockets, s)
	}
	c := new(Capture)
	ctx, c.cancel = context.WithCancel(ctx)
	for _, s := range sockets {
		c.wg.Go(func() { c.read(ctx, s) })
	}
	return c, nil
}

// Stop ends the recording, with every packet that crossed before the call.
func (c *Capture) Stop() *Recording {
	c.cancel()
	c.wg.Wait()
	return &c.rec
}

// packetSocket sees IPv4, IPv6 and all else. It has no protocol until it is bound, so that not one
// packet of another interface gets in.
func (n *Node) packetSocket(link string) (*os.File, error) {
	fd := -1
	err := n.Do(func() error {
		dev, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open packet socket: %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureQueue); err != nil {
			return fmt.Errorf("enlarge queue of packet socket: %w", err)
		}
		const all = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00 // in network byte order
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: dev.Index}); err != nil {
			return fmt.Errorf("bind packet socket: %w", err)
		}
		return nil
	})
	if err != nil {
		if fd >= 0 {
			err = errors.Join(err, unix.Close(fd))
		}
		return nil, err
	}
	return os.NewFile(uintptr(fd), link), nil
}

// read records until ctx ends, and then what is still in the queue.
func (c *Capture) read(ctx context.Context, socket *os.File) {
	defer socket.Close()
	stop := context.AfterFunc(ctx, func() { _ = socket.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, maxFrame)
	for {
		size, err := socket.Read(buf)
		if err != nil {
			break
		}
		c.keep(buf[:size])
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		for {
			size, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
			if err != nil {
				break
			}
			c.keep(buf[:size])
		}
		if s, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			c.drop(int(s.Drops))
		}
	})
}

func (c *Capture) keep(frame []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.Bytes+len(frame) > captureLimit {
		c.rec.Dropped++
		return
	}
	c.rec.Packets++
	c.rec.Bytes += len(frame)
	c.rec.frames = append(c.rec.frames, bytes.Clone(frame))
}

func (c *Capture) drop(count int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rec.Dropped += count
}
