package server

import (
	"net"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// listener closes connections of an address that has its share already, before TLS. gRPC bounds only what one connection
// can do.
type listener struct {
	net.Listener
	places  *places
	refused prometheus.Counter
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := host(c.RemoteAddr())
		if l.places.enter(from) {
			return &conn{Conn: c, leave: sync.OnceFunc(func() { l.places.leave(from) })}, nil
		}
		l.refused.Inc()
		c.Close()
	}
}

// conn gives its place back when it is closed.
type conn struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *conn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
