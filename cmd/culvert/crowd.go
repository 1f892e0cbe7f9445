package main

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

const (
	// maxCrowd is how many connections a server has open: fewer than the node page answers at one time, so that whoever
	// gets in is answered.
	maxCrowd = 24
	// crowdSendBuffer bounds what the kernel keeps for a connection that is not read.
	crowdSendBuffer = 32 << 10
)

// crowd are the connections of a server. For one too many another goes: of the address that has the most, one that is
// idle, else the one that has been at its request for longest. So nobody is kept away by others who stall, or come again
// and again; and from an address of its own, a Prometheus is not even disturbed.
type crowd struct {
	mu   sync.Mutex
	open map[net.Conn]member
}

type member struct {
	from  netip.Addr
	since time.Time // when its request began; zero: it has none
}

// serve makes server keep to the crowd.
func (c *crowd) serve(server *http.Server) {
	c.open = map[net.Conn]member{}
	server.ConnState = c.changed
}

func (c *crowd) changed(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, known := c.open[conn]
	switch state {
	case http.StateNew:
		c.enter(conn)
	case http.StateActive:
		m.since = time.Now()
	case http.StateIdle:
		m.since = time.Time{}
	default:
		delete(c.open, conn)
		return
	}
	if known { // else it is new, or was sent away
		c.open[conn] = m
	}
}

// enter runs before anybody else uses the connection.
func (c *crowd) enter(conn net.Conn) {
	if len(c.open) >= maxCrowd {
		c.makeRoom()
	}
	from, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
	c.open[conn] = member{from: from.Addr().Unmap(), since: time.Now()}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetWriteBuffer(crowdSendBuffer) // best effort: the kernel's own bound is higher
	}
}

func (c *crowd) makeRoom() {
	of := map[netip.Addr]int{}
	for _, m := range c.open {
		of[m.from]++
	}
	var leaving net.Conn
	for conn, m := range c.open {
		last := c.open[leaving]
		if leaving == nil || of[m.from] > of[last.from] || of[m.from] == of[last.from] && m.since.Before(last.since) {
			leaving = conn
		}
	}
	if tcp, ok := leaving.(*net.TCPConn); ok && !c.open[leaving].since.IsZero() {
		_ = tcp.SetLinger(0) // what was not read is not kept for it
	}
	delete(c.open, leaving)
	_ = leaving.Close()
}
