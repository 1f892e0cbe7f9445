package hbone

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// hangupCheck is how often a stream that waits for window looks whether its application is still
// there: nobody reads the socket meanwhile, so nobody else would notice a RST.
const hangupCheck = time.Second

// room waits until the stream may send, and returns how many bytes. Conn.mu is held on entry and
// return. What is queued is flushed before waiting, or both sides might wait for each other.
func (c *Conn) room(s *Stream) (int, error) {
	for {
		if err := s.sendErr(); err != nil {
			return 0, err
		}
		n := min(s.sendWindow, c.sendWindow, int64(c.peerMaxFrame))
		if n > 0 && c.lanes.queued < c.cfg.SendQueue {
			return int(n), nil
		}
		if !c.flushing && c.pending() {
			c.flush(true)
			continue // the world may have changed while the lock was free
		}
		if n <= 0 {
			c.cfg.Stalls.Add(1)
		}
		c.waitForRoom(s)
	}
}

func (c *Conn) waitForRoom(s *Stream) {
	if !s.waiting {
		s.waiting = true
		c.waiters = append(c.waiters, s)
	}
	c.mu.Unlock()
	defer c.mu.Lock()
	t := time.NewTimer(hangupCheck)
	defer t.Stop()
	for {
		select {
		case <-s.wake:
			return
		case <-t.C:
			if hungUp(s.app) {
				s.reset(CodeCancel, unix.ECONNRESET)
				return
			}
			t.Reset(hangupCheck)
		}
	}
}

// wakeWaiters wakes everybody who waits for the connection's window or queue.
func (c *Conn) wakeWaiters() {
	for i, s := range c.waiters {
		s.waiting = false
		s.poke()
		c.waiters[i] = nil
	}
	c.waiters = c.waiters[:0]
}

// windowUpdate handles a WINDOW_UPDATE of the peer.
func (c *Conn) windowUpdate(id, inc uint32) error {
	inc &^= 1 << 31
	c.mu.Lock()
	defer c.mu.Unlock()
	if id == 0 {
		if c.sendWindow += int64(inc); inc == 0 || c.sendWindow > maxWindow {
			return protocolError(CodeFlowControl, "connection window increment %d", inc)
		}
		c.wakeWaiters()
		return nil
	}
	if c.idle(id) {
		return protocolError(CodeProtocol, "WINDOW_UPDATE on idle stream %d", id)
	}
	s := c.streams[id]
	if s == nil {
		return nil
	}
	if s.sendWindow += int64(inc); inc == 0 || s.sendWindow > maxWindow {
		s.resetLocked(CodeFlowControl, protocolError(CodeFlowControl, "stream window increment %d", inc))
		return nil
	}
	s.poke()
	return nil
}

// setInitialWindow applies the peer's SETTINGS_INITIAL_WINDOW_SIZE to all streams; it may make
// their windows negative.
func (c *Conn) setInitialWindow(v uint32) error {
	if v > maxWindow {
		return protocolError(CodeFlowControl, "initial window %d", v)
	}
	delta := int64(v) - c.initialWindow
	c.initialWindow = int64(v)
	for _, s := range c.streams {
		if s.sendWindow += delta; s.sendWindow > maxWindow {
			return protocolError(CodeFlowControl, "initial window %d overflows stream %d", v, s.id)
		}
		s.poke()
	}
	return nil
}

// hungUp reports whether the application has reset the connection. POLLHUP does not count: it also
// stands for a FIN in both directions with data still to be read.
func hungUp(app *net.TCPConn) bool {
	raw, err := app.SyscallConn()
	if err != nil {
		return true
	}
	dead := false
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p, 0)
		dead = err == nil && n > 0 && p[0].Revents&unix.POLLERR != 0
	})
	return err != nil || dead
}
