package hbone

import (
	"encoding/binary"
	"slices"
)

const (
	inlineData  = 2 << 10 // DATA up to this size travels with the small frames
	urgentLimit = 1 << 20 // small frames that may wait: more means a peer that asks and never reads
	flushRounds = 8       // batches that one goroutine writes for others before it gives up its turn
)

// The payloads of our PINGs: what their answers mean.
const (
	pingKeepalive = 1
	pingShutdown  = 2
)

// lanes are the frames that wait for the wire. Small frames go ahead of bulk, except behind bulk of
// their own stream. Guarded by Conn.mu.
type lanes struct {
	urgent *[]byte
	bulk   []*[]byte
	queued int    // bytes, those being written included
	gen    uint64 // number of the batch that is being gathered

	// of the flusher
	bufs       [][]byte
	sendUrgent *[]byte
	sendBulk   []*[]byte
	sending    int
}

// control queues a small frame.
func (c *Conn) control(b []byte) {
	if c.closed {
		return
	}
	if c.lanes.urgent == nil {
		c.lanes.urgent = c.pools.block(false)
		*c.lanes.urgent = (*c.lanes.urgent)[:0]
	}
	*c.lanes.urgent = append(*c.lanes.urgent, b...)
	c.lanes.queued += len(b)
	if len(*c.lanes.urgent) > urgentLimit && c.err == nil {
		c.failLocked(protocolError(CodeCalm, "peer does not read its answers"))
	}
}

// ordered queues a small frame that must not overtake the stream's DATA.
func (c *Conn) ordered(s *Stream, b []byte) {
	if s.bulkGen != c.lanes.gen {
		c.control(b)
		return
	}
	block := c.pools.block(false)
	*block = append((*block)[:0], b...)
	c.lanes.bulk = append(c.lanes.bulk, block)
	c.lanes.queued += len(b)
}

// data queues the n bytes that lie behind headerLen bytes of room in block, as one frame.
func (c *Conn) data(s *Stream, block *[]byte, n int) {
	*block = (*block)[:headerLen+n]
	putFrame(*block, frame{length: n, typ: frameData, stream: s.id})
	s.sendWindow -= int64(n)
	c.sendWindow -= int64(n)
	if c.closed || n <= inlineData && s.bulkGen != c.lanes.gen {
		c.control(*block)
		c.pools.putBlock(block)
		return
	}
	s.bulkGen = c.lanes.gen
	c.lanes.bulk = append(c.lanes.bulk, block)
	c.lanes.queued += len(*block)
}

func (c *Conn) ping(payload uint64) {
	b := appendFrame(nil, frame{length: 8, typ: framePing})
	c.control(binary.BigEndian.AppendUint64(b, payload))
	c.flush(false)
}

func (c *Conn) goAway(last uint32, code ErrCode) {
	b := appendFrame(nil, frame{length: 8, typ: frameGoAway})
	b = binary.BigEndian.AppendUint32(b, last)
	c.control(binary.BigEndian.AppendUint32(b, uint32(code)))
	c.goAwaySent = last != maxWindow
}

// announceEnd tells the peer to open no more streams. A server first says so without refusing any,
// and names the last stream only when a PING has proved that the peer knows: streams that were on
// their way meanwhile are served.
func (c *Conn) announceEnd() {
	if c.client {
		c.goAway(c.peerLast, CodeNo)
		return
	}
	if c.shutdownPinged {
		return
	}
	c.shutdownPinged = true
	c.goAway(maxWindow, CodeNo)
	c.ping(pingShutdown)
}

// flush writes what is queued, unless somebody is at it: he then writes it too. So a lone writer
// hands nothing over, and busy ones share their system calls. Conn.mu is held on entry and return,
// and not while writing. Without block the caller never waits for the socket.
func (c *Conn) flush(block bool) {
	if c.flushing || c.closed || !c.pending() {
		return
	}
	c.flushing = true
	c.flushLoop(block)
}

func (c *Conn) pending() bool {
	return c.lanes.urgent != nil || len(c.lanes.bulk) > 0 || c.records != nil && c.records.stray()
}

func (c *Conn) flushLoop(block bool) {
	for round := 0; c.pending() && !c.closed; round++ {
		if round == flushRounds {
			c.wg.Go(c.resumeFlush)
			return
		}
		if !c.writeBatch(c.takeBatch(), block) {
			c.wg.Go(c.resumeFlush)
			return
		}
	}
	c.flushing = false
	c.flushed.Broadcast()
}

// resumeFlush goes on where a flusher that must not wait has stopped.
func (c *Conn) resumeFlush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writeBatch(nil, true)
	c.flushLoop(true)
}

// takeBatch makes the lanes' content the batch to be written.
func (c *Conn) takeBatch() [][]byte {
	l := &c.lanes
	l.sending = l.queued
	l.sendUrgent, l.urgent = l.urgent, nil
	l.sendBulk, l.bulk = l.bulk, l.sendBulk[:0]
	l.gen++
	l.bufs = l.bufs[:0]
	if l.sendUrgent != nil {
		l.bufs = append(l.bufs, *l.sendUrgent)
	}
	for _, b := range l.sendBulk {
		l.bufs = append(l.bufs, *b)
	}
	return l.bufs
}

// writeBatch writes bufs and reports whether the socket took everything.
func (c *Conn) writeBatch(bufs [][]byte, block bool) bool {
	c.mu.Unlock()
	done, err := c.records.writeBatch(bufs, block)
	c.mu.Lock()
	c.recycleBatch()
	if err != nil {
		c.closed = true
		c.failLocked(err)
		return true
	}
	if !done {
		return false
	}
	c.lanes.queued -= c.lanes.sending
	c.lanes.sending = 0
	if c.lanes.queued < c.cfg.SendQueue {
		c.wakeWaiters()
	}
	return true
}

// recycleBatch gives back the batch's buffers: the record layer has sealed copies.
func (c *Conn) recycleBatch() {
	l := &c.lanes
	if l.sendUrgent != nil {
		c.pools.putBlock(l.sendUrgent)
		l.sendUrgent = nil
	}
	for _, b := range l.sendBulk {
		c.pools.putBlock(b)
	}
	clear(l.sendBulk)
	l.sendBulk = l.sendBulk[:0]
	l.bufs = slices.Delete(l.bufs, 0, len(l.bufs))
}
