package hbone

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// recordLayer is the seam beneath HTTP/2: whole batches of plaintext in and out of a secured
// connection. Reads and writes may run at the same time; neither may run twice at once.
type recordLayer interface {
	// wait blocks until the socket has something, holding no buffer meanwhile.
	wait() error
	// readBatch returns what has arrived without waiting for more; 0 means: wait.
	readBatch(p []byte) (int, error)
	// writeBatch seals bufs and writes them. Without block it may return done=false when the socket
	// takes no more; the rest is then written by the next call.
	writeBatch(bufs [][]byte, block bool) (done bool, err error)
	// stray reports whether the layer has output of its own to write (an answer to a KeyUpdate).
	stray() bool
	// closeWrite ends our direction properly.
	closeWrite() error
}

const (
	recordSize = 16 << 10
	chunkSize  = 4 * (recordSize + 22) // four sealed records
	rawSize    = 128 << 10
)

// errNoInput tells crypto/tls that no bytes are there now. Being temporary it leaves the TLS
// connection intact, and reading goes on where it stopped.
type noInputError struct{}

func (noInputError) Error() string   { return "no input" }
func (noInputError) Timeout() bool   { return true }
func (noInputError) Temporary() bool { return true }

var errNoInput net.Error = noInputError{}

// tlsRecords is crypto/tls over a gatherConn.
type tlsRecords struct {
	*tls.Conn
	gather *gatherConn
}

func (t *tlsRecords) wait() error { return t.gather.fill() }

func (t *tlsRecords) readBatch(p []byte) (int, error) {
	n := 0
	for n == 0 || len(p)-n >= recordSize {
		m, err := t.Conn.Read(p[n:])
		n += m
		if err == errNoInput {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (t *tlsRecords) writeBatch(bufs [][]byte, block bool) (bool, error) {
	for _, b := range bufs {
		if _, err := t.Conn.Write(b); err != nil {
			return true, err
		}
	}
	return t.gather.flush(block)
}

func (t *tlsRecords) stray() bool { return t.gather.held() }

func (t *tlsRecords) closeWrite() error {
	if err := t.Conn.CloseWrite(); err != nil {
		return err
	}
	// CloseWrite has let our write deadline pass, so that nobody writes after it.
	if err := t.gather.SetWriteDeadline(time.Now().Add(lingerTimeout)); err != nil {
		return err
	}
	if _, err := t.gather.flush(true); err != nil {
		return err
	}
	return t.gather.TCPConn.CloseWrite()
}

// gatherConn lies under a tls.Conn, which reads and writes one record at a time: it reads many
// records per system call, and holds sealed records until flush writes them together. Until start
// is called it is a plain connection, so that the handshake is one as well.
type gatherConn struct {
	*net.TCPConn
	raw     syscall.RawConn
	started bool

	// reader only
	in      *[]byte // from rawPool, while it holds bytes
	r, w    int
	inErr   error
	readFn  func(fd uintptr) bool
	pools   *pools
	writeFn func(fd uintptr) bool

	mu  sync.Mutex
	out []*[]byte // sealed records, in chunks from chunkPool

	// flusher only
	sending  []*[]byte
	base     [][]byte // where iov starts, to use its room again
	iov      [][]byte // what of sending is not written yet
	outErr   error
	blocking bool
}

func newGatherConn(tcp *net.TCPConn, p *pools) (*gatherConn, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, err
	}
	g := &gatherConn{TCPConn: tcp, raw: raw, pools: p}
	g.readFn, g.writeFn = g.readReady, g.writeReady
	return g, nil
}

func (g *gatherConn) start() { g.started = true }

func (g *gatherConn) Read(p []byte) (int, error) {
	if !g.started {
		return g.TCPConn.Read(p)
	}
	if g.in == nil {
		return 0, errNoInput
	}
	n := copy(p, (*g.in)[g.r:g.w])
	if g.r += n; g.r == g.w {
		g.pools.raw.Put(g.in)
		g.in, g.r, g.w = nil, 0, 0
	}
	return n, nil
}

// fill blocks until bytes have arrived.
func (g *gatherConn) fill() error {
	if g.in != nil {
		return nil
	}
	g.inErr = nil
	if err := g.raw.Read(g.readFn); err != nil {
		return err
	}
	return g.inErr
}

func (g *gatherConn) readReady(fd uintptr) bool {
	b := g.pools.raw.Get().(*[]byte)
	n, err := ignoringEINTR(func() (int, error) { return unix.Read(int(fd), *b) })
	if n > 0 {
		g.in, g.r, g.w = b, 0, n
		return true
	}
	g.pools.raw.Put(b)
	if err == unix.EAGAIN {
		return false
	}
	if g.inErr = err; err == nil {
		g.inErr = io.EOF
	}
	return true
}

func (g *gatherConn) Write(p []byte) (int, error) {
	if !g.started {
		return g.TCPConn.Write(p)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for rest := p; len(rest) > 0; {
		var b *[]byte
		if l := len(g.out); l > 0 && len(*g.out[l-1]) < chunkSize {
			b = g.out[l-1]
		} else {
			b = g.pools.chunks.Get().(*[]byte)
			*b = (*b)[:0]
			g.out = append(g.out, b)
		}
		m := min(len(rest), chunkSize-len(*b))
		*b = append(*b, rest[:m]...)
		rest = rest[m:]
	}
	return len(p), nil
}

func (g *gatherConn) held() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.out) > 0
}

// flush writes what is held. Not blocking, it stops when the socket takes no more.
func (g *gatherConn) flush(block bool) (done bool, err error) {
	for {
		if len(g.iov) == 0 && !g.next() {
			return true, nil
		}
		g.blocking, g.outErr = block, nil
		if err := g.raw.Write(g.writeFn); err != nil {
			return true, err
		}
		if g.outErr != nil {
			return true, g.outErr
		}
		if len(g.iov) > 0 {
			return false, nil
		}
		g.recycle()
	}
}

// next takes what is held for writing.
func (g *gatherConn) next() bool {
	g.mu.Lock()
	g.sending, g.out = g.out, g.sending[:0]
	g.mu.Unlock()
	g.base = g.base[:0]
	for _, b := range g.sending {
		g.base = append(g.base, *b)
	}
	g.iov = g.base
	return len(g.iov) > 0
}

func (g *gatherConn) recycle() {
	for i, b := range g.sending {
		g.pools.chunks.Put(b)
		g.sending[i] = nil
	}
	g.sending = g.sending[:0]
}

func (g *gatherConn) writeReady(fd uintptr) bool {
	rest, _, err := writeVectors(int(fd), g.iov)
	g.iov = rest
	if err == unix.EAGAIN {
		return !g.blocking
	}
	g.outErr = err
	return true
}

// writeVectors writes until everything is written or the socket takes no more (EAGAIN). It returns
// what is left of v, whose slices it moves forward.
func writeVectors(fd int, v [][]byte) (rest [][]byte, n int, err error) {
	for len(v) > 0 {
		m, err := ignoringEINTR(func() (int, error) { return unix.Writev(fd, v[:min(len(v), 64)]) })
		if err != nil {
			return v, n, err
		}
		n += m
		v = skip(v, m)
	}
	return v, n, nil
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}
