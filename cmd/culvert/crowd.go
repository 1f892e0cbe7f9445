package main

import (
	"cmp"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxCrowd is how many connections a server answers at a time: fewer than the node page does, so that whoever gets in
	// is answered.
	maxCrowd = 24
	// maxWaiting is how many more wait for a place, and maxWait for how long.
	maxWaiting = 128
	maxWait    = 5 * time.Second
	// patience is how long a guest may keep a place that others wait for without asking, or without taking a piece of what
	// it asked for. Nobody waits longer for a place of an address that has more.
	patience = 500 * time.Millisecond
	// doorstep is how often somebody looks whose patience has ended, while others wait.
	doorstep = 50 * time.Millisecond
	// crowdSendBuffer bounds what the kernel keeps for a guest that does not read, and crowdPiece is what it has to take at
	// a time.
	crowdSendBuffer = 32 << 10
	crowdPiece      = 16 << 10
)

// crowd is a listener with a bounded number of connections, whose server answers one request on each. While all places
// are taken newcomers wait, those of the address with the fewest places first. Who keeps a place and does nothing with it
// has to go: so nobody is kept away by others who stall. Who has asked and takes the answer stays, also for others
// of its own address; it goes only when its address has places and another one has fewer. From an address of its own, a
// Prometheus is not even disturbed.
type crowd struct {
	net.Listener
	arrivals chan arrival
	left     chan struct{} // somebody has gone; holds one
	done     chan struct{}

	waiting []*guest // by arrival; used by Accept alone

	mu   sync.Mutex
	open map[*guest]bool
}

type arrival struct {
	conn net.Conn
	err  error
}

func newCrowd(l net.Listener) *crowd {
	return &crowd{Listener: l, open: map[*guest]bool{}, arrivals: make(chan arrival), left: make(chan struct{}, 1), done: make(chan struct{})}
}

// serve answers with server until that, or the listener, is closed.
func (c *crowd) serve(server *http.Server) error {
	server.SetKeepAlivesEnabled(false) // who has its answer makes room; an idle one could be cut off while it asks again
	server.ConnState = func(conn net.Conn, state http.ConnState) {
		if g, ok := conn.(*guest); ok && state == http.StateActive {
			g.asked()
		}
	}
	var receiving sync.WaitGroup
	receiving.Go(c.receive)
	err := server.Serve(c)
	close(c.done)
	_ = c.Listener.Close() // or it would be received for ever; the server has closed it before, as a rule
	receiving.Wait()
	for _, g := range c.waiting {
		_ = g.Conn.Close()
	}
	return err
}

// receive takes connections from the listener, so that Accept can do something else while none comes.
func (c *crowd) receive() {
	for {
		conn, err := c.Listener.Accept()
		select {
		case c.arrivals <- arrival{conn, err}:
		case <-c.done:
			if conn != nil {
				_ = conn.Close()
			}
			return
		}
	}
}

// Accept implements net.Listener: it returns those who get a place.
func (c *crowd) Accept() (net.Conn, error) {
	for {
		if g := c.next(time.Now()); g != nil {
			return g, nil
		}
		var look <-chan time.Time
		if len(c.waiting) > 0 {
			look = time.After(doorstep)
		}
		select {
		case a := <-c.arrivals:
			if a.err != nil {
				return nil, a.err
			}
			c.arrive(a.conn)
		case <-c.left:
		case <-look:
		}
	}
}

// arrive lets somebody wait. When too many do, one goes of the address of which most wait: nothing of it was read yet.
func (c *crowd) arrive(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetWriteBuffer(crowdSendBuffer) // best effort: the kernel's own bound is higher
	}
	from, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
	c.waiting = append(c.waiting, &guest{Conn: conn, crowd: c, from: from.Addr().Unmap(), came: time.Now()})
	if len(c.waiting) <= maxWaiting {
		return
	}
	of := map[netip.Addr]int{}
	for _, g := range c.waiting {
		of[g.from]++
	}
	c.sendAway(slices.MaxFunc(c.waiting, func(a, b *guest) int { return of[a.from] - of[b.from] }))
}

func (c *crowd) sendAway(g *guest) {
	c.waiting = slices.DeleteFunc(c.waiting, func(other *guest) bool { return other == g })
	_ = g.Conn.Close()
}

// next gives a place to one that waits, if there is one or somebody has to make room.
func (c *crowd) next(now time.Time) *guest {
	for len(c.waiting) > 0 && now.Sub(c.waiting[0].came) >= maxWait {
		c.sendAway(c.waiting[0])
	}
	if len(c.waiting) == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	places := map[netip.Addr]int{}
	for g := range c.open {
		places[g.from]++
	}
	next := slices.MinFunc(c.waiting, func(a, b *guest) int { return places[a.from] - places[b.from] })
	if len(c.open) >= maxCrowd {
		leaving := c.leaving(next, places, now)
		if leaving == nil {
			return nil
		}
		delete(c.open, leaving)
		leaving.cutOff()
	}
	c.waiting = slices.DeleteFunc(c.waiting, func(g *guest) bool { return g == next })
	next.since.Store(now.UnixNano())
	c.open[next] = true
	return next
}

// leaving is who has to make room for next: of the address with the most places, who has done nothing for longest. It is
// nobody of an address that has fewer than that of next.
func (c *crowd) leaving(next *guest, places map[netip.Addr]int, now time.Time) (leaving *guest) {
	for g := range c.open {
		fewer := places[next.from]+1 < places[g.from] && now.Sub(next.came) >= patience
		if places[g.from] < places[next.from] || !fewer && g.idle(now) < patience {
			continue
		}
		if leaving == nil || cmp.Or(places[g.from]-places[leaving.from], cmp.Compare(g.idle(now), leaving.idle(now)), leaving.came.Compare(g.came)) > 0 {
			leaving = g
		}
	}
	return leaving
}

// guest is a connection.
type guest struct {
	net.Conn
	crowd *crowd
	from  netip.Addr
	came  time.Time
	// since is when it last did something, in Unix nanoseconds; 0: it waits for the server.
	since  atomic.Int64
	served atomic.Bool // its request was read
}

// idle is for how long it is its turn, and it does nothing.
func (g *guest) idle(now time.Time) time.Duration {
	if since := g.since.Load(); since != 0 {
		return time.Duration(now.UnixNano() - since)
	}
	return 0
}

func (g *guest) asked() {
	g.served.Store(true)
	g.since.Store(0)
}

// Read implements net.Conn.
func (g *guest) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	if n > 0 && !g.served.Load() {
		g.since.Store(time.Now().UnixNano())
	}
	return n, err
}

// Write implements net.Conn.
func (g *guest) Write(p []byte) (written int, err error) {
	defer g.since.Store(0)
	for piece := range slices.Chunk(p, crowdPiece) {
		g.since.Store(time.Now().UnixNano())
		n, err := g.Conn.Write(piece)
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// cutOff ends it. What was not read is not kept for it.
func (g *guest) cutOff() {
	if tcp, ok := g.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = g.Conn.Close()
}

// Close implements net.Conn.
func (g *guest) Close() error {
	g.crowd.mu.Lock()
	delete(g.crowd.open, g)
	g.crowd.mu.Unlock()
	select {
	case g.crowd.left <- struct{}{}:
	default:
	}
	return g.Conn.Close()
}
