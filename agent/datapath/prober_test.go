package datapath

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// prober is another process, in a cgroup of its own, that connects when it is told to: the kubelet.
type prober struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Scanner
	cmd *exec.Cmd
}

// makeCgroup makes a cgroup below the test's.
func makeCgroup(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv(cgroupEnv) + "/" + name
	must(t, os.Mkdir(dir, 0o755))
	removeCgroup(t, dir)
	return dir
}

func removeCgroup(t *testing.T, dir string) {
	t.Cleanup(func() {
		eventually(t, "the cgroup is empty", func() bool {
			err := os.Remove(dir)
			return err == nil || errors.Is(err, os.ErrNotExist)
		})
	})
}

func startProber(t *testing.T, cgroup string, ns *os.File) *prober {
	t.Helper()
	dir, err := os.Open(cgroup)
	must(t, err)
	defer dir.Close()
	cmd := exec.Command("/proc/self/exe")
	// Go's own signals would interrupt system calls that have a timeout.
	cmd.Env = []string{proberEnv + "=1", "GODEBUG=asyncpreemptoff=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, inNetns(ns, cmd.Start)) // a child begins in the namespace of the thread that starts it
	p := &prober{t: t, in: in, out: bufio.NewScanner(out), cmd: cmd}
	t.Cleanup(p.stop)
	return p
}

func (p *prober) stop() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// try connects, and tells its own address as seen by the server, or what went wrong in one word.
func (p *prober) try(how string, from, to netip.AddrPort) string {
	p.t.Helper()
	own := "-"
	if from.IsValid() {
		own = from.String()
	}
	fmt.Fprintln(p.in, how, own, to)
	if !p.out.Scan() {
		p.t.Fatal("the prober is gone")
	}
	return p.out.Text()
}

func (p *prober) passes(how string, to netip.AddrPort) netip.AddrPort {
	p.t.Helper()
	got := p.try(how, netip.AddrPort{}, to)
	from, err := netip.ParseAddrPort(got)
	if err != nil {
		p.t.Errorf("probe of %s: %s", to, got)
	}
	return from
}

func (p *prober) refused(from, to netip.AddrPort) {
	p.t.Helper()
	if got := p.try("close", from, to); got != "refused" {
		p.t.Errorf("connect from %s to %s: %s, want it refused", from, to, got)
	}
}

// probeOnDemand is the prober's main function.
func probeOnDemand() int {
	var held []int
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var how, from, to string
		fmt.Sscan(in.Text(), &how, &from, &to)
		if how == "release" { // to is of no matter
			for _, fd := range held {
				unix.Close(fd)
			}
			held = nil
			fmt.Println("released")
			continue
		}
		fd, answer := probe(how, from, to)
		switch {
		case fd < 0:
		case how == "hold" || how == "mapped":
			held = append(held, fd)
		case how == "reset":
			_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			fallthrough
		default:
			unix.Close(fd)
		}
		fmt.Println(answer)
	}
	return 0
}

func probe(how, from, to string) (fd int, answer string) {
	target := netip.MustParseAddrPort(to)
	if how == "mapped" {
		target = netip.AddrPortFrom(netip.AddrFrom16(target.Addr().As16()), target.Port())
	}
	family := unix.AF_INET6
	if target.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err.Error()
	}
	patience := wait
	if how == "impatient" {
		patience = 20 * time.Millisecond
	}
	timeout := unix.NsecToTimeval(patience.Nanoseconds())
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if own, err := netip.ParseAddrPort(from); err == nil {
		if err := unix.Bind(fd, sockaddr(own)); err != nil {
			return fd, "bind: " + err.Error()
		}
	}
	switch err := unix.Connect(fd, sockaddr(target)); {
	case errors.Is(err, unix.ECONNREFUSED):
		return fd, "refused"
	case errors.Is(err, unix.EINPROGRESS), errors.Is(err, unix.EAGAIN):
		return fd, "timeout"
	case err != nil:
		return fd, err.Error()
	}
	b := make([]byte, 100)
	n, err := unix.Read(fd, b)
	if err != nil || n == 0 {
		return fd, fmt.Sprintf("nothing to read: %v", err)
	}
	return fd, strings.TrimSpace(string(b[:n]))
}
