package hbone

import (
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// growWithin is the time in which half a window must have been used for the window to grow.
const growWithin = 200 * time.Millisecond

var (
	errBudget     = errors.New("memory budget for applications that do not read is used up")
	errOverWindow = errors.New("peer sent beyond the stream's window")
)

// receiver is the receiving side of a stream. The connection's reader writes to the application
// without blocking; what the socket does not take waits in queue, and one drain goroutine exists
// while it is not empty. The window bounds the queue.
type receiver struct {
	done    chan struct{}  // everything and the FIN have been delivered
	drainer sync.WaitGroup // at most one

	mu         sync.Mutex
	app        *net.TCPConn
	raw        syscall.RawConn
	fn         func(fd uintptr) bool
	queue      []*[]byte // chunks of queueChunk bytes, each charged to the budget as a whole
	draining   bool
	eof        bool
	dead       bool
	window     int
	maxWindow  int
	avail      int // what the peer may still send
	unacked    int // delivered, and not given back yet
	lastCredit time.Time
	received   uint64

	// of one non-blocking write
	iov   [][]byte
	wrote int
	err   error
}

func (r *receiver) init(cfg Config) {
	r.done = make(chan struct{})
	r.window, r.avail, r.maxWindow = cfg.StreamWindow, cfg.StreamWindow, cfg.MaxStreamWindow
	r.lastCredit = time.Now()
	r.fn = r.writeReady
}

// announce takes n bytes off the window before they are read.
func (r *receiver) announce(n int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.avail -= n; r.avail < 0 {
		return errOverWindow
	}
	return nil
}

// attach gives the stream its application; what has come before is drained to it.
func (r *receiver) attach(s *Stream, app *net.TCPConn, raw syscall.RawConn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.app, r.raw = app, raw
	if !r.dead && (len(r.queue) > 0 || r.eof) {
		r.startDrain(s)
	}
}

func (r *receiver) startDrain(s *Stream) {
	r.draining = true
	r.drainer.Go(func() { r.drain(s) })
}

// deliver hands v, total bytes, to the application or the queue; v's contents are not kept. It returns the
// window to give back to the peer. Called by the connection's reader alone; never blocks.
func (r *receiver) deliver(s *Stream, v [][]byte, total int) (credit int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dead {
		return 0, nil
	}
	if r.app != nil && !r.draining {
		if v, err = r.writeNow(v); err != nil {
			r.dead = true
			return 0, err
		}
	} else {
		r.wrote = 0
	}
	if r.wrote < total {
		if err := r.enqueue(s.c, v); err != nil {
			r.dead = true
			return 0, err
		}
		if r.app != nil && !r.draining {
			r.startDrain(s)
		}
	}
	return r.consumed(s.c.cfg.Budget, r.wrote), nil
}

func (r *receiver) writeNow(v [][]byte) (rest [][]byte, err error) {
	r.iov, r.wrote, r.err = v, 0, nil
	if err := r.raw.Write(r.fn); err != nil {
		return nil, err
	}
	rest, r.iov = r.iov, nil
	return rest, r.err
}

func (r *receiver) writeReady(fd uintptr) bool {
	rest, n, err := writeVectors(int(fd), r.iov)
	r.iov, r.wrote = rest, n
	if err != unix.EAGAIN {
		r.err = err
	}
	return true
}

// enqueue copies v into chunks.
func (r *receiver) enqueue(c *Conn, v [][]byte) error {
	for _, p := range v {
		for len(p) > 0 {
			var b *[]byte
			if l := len(r.queue); l > 0 && len(*r.queue[l-1]) < queueChunk {
				b = r.queue[l-1]
			} else {
				if !c.cfg.Budget.take(queueChunk) {
					return errBudget
				}
				b = c.pools.queue.Get().(*[]byte)
				*b = (*b)[:0]
				r.queue = append(r.queue, b)
			}
			m := min(len(p), queueChunk-len(*b))
			*b = append(*b, p[:m]...)
			p = p[m:]
		}
	}
	return nil
}

// consumed counts n delivered bytes and returns the window to give back, at times more than was
// used: a stream whose application keeps up gets a larger window.
func (r *receiver) consumed(b *Budget, n int) int {
	r.received += uint64(n)
	return r.credit(b, n)
}

func (r *receiver) credit(b *Budget, n int) int {
	r.unacked += n
	if r.eof || r.unacked < max(1, r.window/2) {
		return 0
	}
	now := time.Now()
	grow := 0
	if now.Sub(r.lastCredit) < growWithin && len(r.queue) == 0 && b.roomy() {
		grow = min(r.window, r.maxWindow-r.window)
	}
	r.lastCredit = now
	inc := r.unacked + grow
	r.window += grow
	r.avail += inc
	r.unacked = 0
	return inc
}

// padding gives back window that carried no bytes for the application.
func (r *receiver) padding(b *Budget, n int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.credit(b, n)
}

// finish notes the end of the peer's bytes, and passes on the FIN once they are delivered.
func (r *receiver) finish() {
	r.mu.Lock()
	r.eof = true
	later := r.dead || r.app == nil || r.draining
	r.mu.Unlock()
	if !later {
		r.sendFIN()
	}
}

func (r *receiver) sendFIN() {
	r.app.CloseWrite() // a socket that was reset meanwhile is noticed by the pump
	close(r.done)
}

// drain writes the queue until it is empty, and the FIN if that is what comes next.
func (r *receiver) drain(s *Stream) {
	for {
		queue, fin := r.next()
		if len(queue) == 0 {
			if fin {
				r.sendFIN()
			}
			return
		}
		if err := r.write(s, queue); err != nil {
			r.fail()
			s.reset(CodeCancel, err)
			return
		}
	}
}

// next takes the queue. Empty, it ends the draining: whoever comes later writes by himself.
func (r *receiver) next() (queue []*[]byte, fin bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.draining = false
	if r.dead {
		return nil, false
	}
	queue, r.queue = r.queue, nil
	r.draining = len(queue) > 0
	return queue, r.eof
}

func (r *receiver) fail() {
	r.mu.Lock()
	r.dead = true
	r.mu.Unlock()
}

// write writes the chunks, giving each back as soon as it is written.
func (r *receiver) write(s *Stream, queue []*[]byte) error {
	for i, b := range queue {
		n, err := r.app.Write(*b)
		if err != nil {
			s.c.release(queue[i:])
			return err
		}
		s.c.release(queue[i : i+1])
		r.mu.Lock()
		credit := r.consumed(s.c.cfg.Budget, n)
		r.mu.Unlock()
		s.credit(credit)
	}
	return nil
}

// release gives back chunks.
func (c *Conn) release(queue []*[]byte) {
	for _, b := range queue {
		c.pools.queue.Put(b)
	}
	c.cfg.Budget.release(len(queue) * queueChunk)
}

// credit gives window back to the peer. Conn.mu is not held.
func (s *Stream) credit(n int) {
	if n == 0 {
		return
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.closed || s.recvEnd {
		return
	}
	s.c.control(appendUint32Frame(nil, frameWindowUpdate, s.id, uint32(n)))
	s.c.flush(false)
}

// kill ends the receiving side: nothing is delivered any more, memory is given back. It waits for
// the drain goroutine, whose write the caller has made to fail, if there is one.
func (r *receiver) kill(c *Conn) {
	r.mu.Lock()
	r.dead = true
	r.mu.Unlock()
	r.drainer.Wait()
	r.mu.Lock()
	queue := r.queue
	r.queue = nil
	r.mu.Unlock()
	c.release(queue)
}
