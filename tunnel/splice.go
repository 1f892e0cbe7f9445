package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

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

// spliced returns what says how much splice has carried so far: the bytes are counted by the kernel alone.
func spliced(a, b *net.TCPConn) func() hbone.Stats {
	return func() hbone.Stats { return hbone.Stats{Sent: bytesRead(a), Received: bytesRead(b)} }
}

// bytesRead returns how many bytes were read from a connection, 0 once it is closed. The bytes that wait are asked for
// last: those that arrive in between make it too little, never too much.
func bytesRead(c *net.TCPConn) (n uint64) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		waiting, err := unix.IoctlGetInt(int(fd), unix.SIOCINQ)
		if err != nil || waiting < 0 {
			return
		}
		beside := uint64(waiting)
		switch info.State {
		case unix.BPF_TCP_CLOSE:
			return // with or without a FIN?
		case unix.BPF_TCP_CLOSE_WAIT, unix.BPF_TCP_LAST_ACK, unix.BPF_TCP_CLOSING, unix.BPF_TCP_TIME_WAIT:
			beside++ // the FIN counts as a byte
		}
		n = info.Bytes_received - min(info.Bytes_received, beside)
	})
	return n
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
