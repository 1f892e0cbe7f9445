package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/tunnel/hbone"
)

// splice joins two connections until both directions have ended, and closes them. io.Copy between TCP
// connections is splice(2): the bytes never come up here. A FIN ends its direction only; a reset of
// either side resets the other. Sent counts what went from a to b.
func splice(ctx context.Context, a, b *net.TCPConn) (hbone.Stats, error) {
	abort := sync.OnceFunc(func() {
		past := time.Unix(1, 0)
		_ = a.SetDeadline(past)
		_ = b.SetDeadline(past)
	})
	stop := context.AfterFunc(ctx, abort)
	defer stop()

	var stats hbone.Stats
	var backErr error
	var wg sync.WaitGroup
	wg.Go(func() {
		var n int64
		n, backErr = copyHalf(a, b, abort)
		stats.Received = uint64(n)
	})
	n, err := copyHalf(b, a, abort)
	wg.Wait()
	stats.Sent = uint64(n)

	err = cause(err, backErr)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		reset(a)
		reset(b)
		return stats, err
	}
	return stats, errors.Join(a.Close(), b.Close())
}

func copyHalf(to, from *net.TCPConn, abort func()) (int64, error) {
	n, err := io.Copy(to, from)
	if err == nil {
		err = to.CloseWrite()
	}
	if err != nil {
		abort()
	}
	return n, err
}

// cause prefers the error that ended the connection to the deadline by which the other direction was told.
func cause(errs ...error) error {
	var last error
	for _, err := range errs {
		if err == nil {
			continue
		}
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			return err
		}
		last = err
	}
	return last
}
