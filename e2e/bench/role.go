package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The parts that a process can play.
const (
	roleApp    = "app"
	roleCopy   = "copy"
	roleClient = "hbone client"
	roleServer = "hbone server"
	roleLoad   = "load"
)

// runRole plays the part that config (JSON) names until stdin or ctx ends.
func runRole(ctx context.Context, config string, stdin io.Reader, stdout io.Writer) error {
	var c roleConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return fmt.Errorf("%s: %w", roleVariable, err)
	}
	if c.Role == roleLoad {
		return playLoad(ctx, c, stdout)
	}
	handle, end, err := newHandler(ctx, c)
	if err != nil {
		return err
	}
	defer end()
	l, err := listen(ctx)
	if err != nil {
		return err
	}
	var serving sync.WaitGroup
	serving.Go(func() { serve(l, handle) })
	defer serving.Wait()
	defer l.Close()
	fmt.Fprintln(stdout, l.Addr())
	return answer(stdin, stdout)
}

// newHandler returns what a role does with each connection, and what ends it.
func newHandler(ctx context.Context, c roleConfig) (handle func(*net.TCPConn), end func(), err error) {
	switch c.Role {
	case roleApp:
		return serveApp, func() {}, nil
	case roleCopy:
		return func(in *net.TCPConn) { relayCopy(ctx, in, c.Target) }, func() {}, nil
	case roleClient:
		return newClientEnd(ctx, c)
	case roleServer:
		return newServerEnd(ctx, c)
	default:
		return nil, nil, fmt.Errorf("unknown role %q", c.Role)
	}
}

// serve does not wait for open connections: the process ends with the run.
func serve(l net.Listener, handle func(*net.TCPConn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go handle(c.(*net.TCPConn))
	}
}

// answer writes the CPU time used so far for each line that it reads.
func answer(stdin io.Reader, stdout io.Writer) error {
	for lines := bufio.NewScanner(stdin); lines.Scan(); {
		var usage unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
			return fmt.Errorf("getrusage: %w", err)
		}
		fmt.Fprintln(stdout, time.Duration(usage.Utime.Nano()+usage.Stime.Nano()))
	}
	return nil
}

// serveApp is the application: the first byte of a connection says what to do.
func serveApp(c *net.TCPConn) {
	defer c.Close()
	var first [1]byte
	if _, err := io.ReadFull(c, first[:]); err != nil {
		return
	}
	switch first[0] {
	case sinkByte:
		n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
		fmt.Fprintln(c, n)
	case echoByte:
		echo(c)
	case requestByte:
		if _, err := io.CopyN(io.Discard, c, requestSize); err == nil {
			c.Write(make([]byte, responseSize))
		}
	}
}

func echo(c *net.TCPConn) {
	for ball := make([]byte, ballSize); ; {
		if _, err := io.ReadFull(c, ball); err != nil {
			return
		}
		if _, err := c.Write(ball); err != nil {
			return
		}
	}
}

// relayCopy copies both directions through buffers of its own. The struct wrappers hide ReadFrom and
// WriteTo, which would splice: this is the floor for a relay that must see the bytes.
func relayCopy(ctx context.Context, in *net.TCPConn, target string) {
	defer in.Close()
	out, err := dial(ctx, target)
	if err != nil {
		in.SetLinger(0)
		return
	}
	defer out.Close()
	var back sync.WaitGroup
	back.Go(func() { copyHalf(in, out) })
	copyHalf(out, in)
	back.Wait()
}

func copyHalf(to, from *net.TCPConn) {
	io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, 64<<10))
	to.CloseWrite()
}

func listen(ctx context.Context) (*net.TCPListener, error) {
	config := net.ListenConfig{Control: setCubic}
	config.SetMultipathTCP(false)
	l, err := config.Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	return l.(*net.TCPListener), nil
}

func dial(ctx context.Context, address string) (*net.TCPConn, error) {
	d := net.Dialer{Control: setCubic, Timeout: 10 * time.Second}
	c, err := d.DialContext(ctx, "tcp4", address)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}
