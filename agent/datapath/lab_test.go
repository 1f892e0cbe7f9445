package datapath

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/agent/datapath/flows"
	"github.com/culvert-mesh/culvert/policy"
)

const (
	cgroupEnv, helperEnv = "DATAPATH_TEST_CGROUP", "DATAPATH_TEST_HELPER"
	proberEnv            = "DATAPATH_TEST_PROBER"
)

// TestMain runs the tests once more inside a cgroup of their own, so that the hooks reach nothing else on the machine.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(helperEnv) != "":
		os.Exit(helper(os.Getenv(helperEnv)))
	case os.Getenv(proberEnv) != "":
		os.Exit(probeOnDemand())
	case os.Getenv(cgroupEnv) != "" || os.Geteuid() != 0:
		os.Exit(m.Run())
	}
	code, err := runInCgroup()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func cgroup2() (string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		fields, fstype, _ := strings.Cut(line, " - ")
		if strings.HasPrefix(fstype, "cgroup2 ") {
			return strings.Fields(fields)[4], nil
		}
	}
	return "", errors.New("no cgroup2 file system is mounted")
}

func runInCgroup() (int, error) {
	root, err := cgroup2()
	if err != nil {
		return 1, err
	}
	dir, err := os.MkdirTemp(root, "culvert-datapath-test-")
	if err != nil {
		return 1, err
	}
	defer os.Remove(dir)
	f, err := os.Open(dir)
	if err != nil {
		return 1, err
	}
	defer f.Close()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), cgroupEnv+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd()), Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig means this thread
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// lab is a pod and a client, two network namespaces joined by one link.
type lab struct {
	t           testing.TB
	opts        Options
	d           *Datapath
	pod, client *os.File
	w           Workload
}

var (
	pod4, pod6       = netip.MustParseAddr("10.99.0.2"), netip.MustParseAddr("fd99::2")
	client4, client6 = netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("fd99::1")
	remote4, remote6 = netip.MustParseAddr("10.77.1.9"), netip.MustParseAddr("fd77::9")
)

const wait = 3 * time.Second

func newLab(t testing.TB, m policy.Modes) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: makes network namespaces and attaches BPF programs")
	}
	l := &lab{t: t, opts: Options{BPFFS: mountBPFFS(t), Cgroup: os.Getenv(cgroupEnv)}}
	l.pod, l.client = newNetns(t), newNetns(t)
	l.link()
	cookie, err := NetnsCookie(l.pod)
	must(t, err)
	l.w = Workload{Cookie: cookie, Netns: l.pod, IPv4: pod4, IPv6: pod6}
	t.Cleanup(func() { must(t, Uninstall(l.opts)) }) // after the agent is closed
	l.open()
	must(t, l.d.SetPolicy(cookie, m))
	must(t, l.d.Attach(l.w))
	must(t, l.d.SetCaptured([]netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/16")}))
	return l
}

func (l *lab) open() {
	l.t.Helper()
	d, err := Open(l.opts)
	must(l.t, err)
	l.d = d
	l.t.Cleanup(func() { d.Close() })
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%+v", err)
	}
}

func mountBPFFS(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	must(t, unix.Mount("bpf", dir, "bpf", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

func newNetns(t testing.TB) *os.File {
	t.Helper()
	var f *os.File
	must(t, inFreshNetns(func() (err error) {
		f, err = os.Open("/proc/thread-self/ns/net")
		return err
	}))
	t.Cleanup(func() { f.Close() })
	return f
}

func (l *lab) link() {
	l.t.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(l.pod.Fd()))
	must(l.t, err)
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	must(l.t, h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(l.client.Fd())}))
	l.configure(l.pod, pod4, pod6, client4, client6)
	l.configure(l.client, client4, client6, netip.Addr{}, netip.Addr{})
}

func (l *lab) configure(ns *os.File, a4, a6, gw4, gw6 netip.Addr) {
	l.t.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()))
	must(l.t, err)
	defer h.Close()
	for _, name := range []string{"lo", "eth0"} {
		i, err := h.LinkByName(name)
		must(l.t, err)
		must(l.t, h.LinkSetUp(i))
	}
	i, err := h.LinkByName("eth0")
	must(l.t, err)
	for _, a := range []string{a4.String() + "/24", a6.String() + "/64"} {
		addr, err := netlink.ParseAddr(a)
		must(l.t, err)
		addr.Flags = unix.IFA_F_NODAD
		must(l.t, h.AddrAdd(i, addr))
	}
	for _, gw := range []netip.Addr{gw4, gw6} {
		if gw.IsValid() {
			must(l.t, h.RouteAdd(&netlink.Route{LinkIndex: i.Attrs().Index, Gw: gw.AsSlice()}))
		}
	}
}

func network(a netip.Addr) string {
	if a == netip.IPv6Unspecified() {
		return "tcp" // both families
	}
	if a.Is4() {
		return "tcp4"
	}
	return "tcp6"
}

func (l *lab) listen(ns *os.File, at netip.AddrPort) *net.TCPListener {
	l.t.Helper()
	var ln net.Listener
	must(l.t, inNetns(ns, func() (err error) {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		ln, err = lc.Listen(context.Background(), network(at.Addr()), at.String())
		return err
	}))
	l.t.Cleanup(func() { ln.Close() })
	return ln.(*net.TCPListener)
}

// serve answers every connection with one line, its peer's address, and then echoes.
func (l *lab) serve(ns *os.File, at netip.AddrPort) *net.TCPListener {
	l.t.Helper()
	ln := l.listen(ns, at)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprintf(c, "%s\n", c.RemoteAddr())
				io.Copy(c, c)
			}()
		}
	}()
	return ln
}

func (l *lab) dial(ns *os.File, from, to netip.AddrPort) (*net.TCPConn, error) {
	var c net.Conn
	err := inNetns(ns, func() (err error) {
		d := net.Dialer{Timeout: wait}
		if from.IsValid() {
			d.LocalAddr = net.TCPAddrFromAddrPort(from)
		}
		c, err = d.Dial(network(to.Addr()), to.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	l.t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn), nil
}

// greeting reads the line of serve.
func greeting(t testing.TB, c net.Conn) string {
	t.Helper()
	c.SetDeadline(time.Now().Add(wait))
	line, err := bufio.NewReader(io.LimitReader(c, 100)).ReadString('\n')
	must(t, err)
	return strings.TrimSpace(line)
}

func (l *lab) refused(to netip.AddrPort) {
	l.t.Helper()
	start := time.Now()
	_, err := l.dial(l.client, netip.AddrPort{}, to)
	if !errors.Is(err, unix.ECONNREFUSED) || time.Since(start) > time.Second {
		l.t.Errorf("connect to %s: %v after %v, want it refused at once", to, err, time.Since(start))
	}
}

func (l *lab) passes(to netip.AddrPort) *net.TCPConn {
	l.t.Helper()
	c, err := l.dial(l.client, netip.AddrPort{}, to)
	must(l.t, err)
	if got := greeting(l.t, c); got != c.LocalAddr().String() {
		l.t.Errorf("%s sees the peer %s, want %s", to, got, c.LocalAddr())
	}
	return c
}

// destination asks as the tunnel does for a connection accepted in the pod.
func destination(c *net.TCPConn) (netip.AddrPort, error) {
	return flows.Flows{}.OriginalDestination(c, []netip.Addr{pod4, pod6})
}

func port(a netip.Addr, p uint16) netip.AddrPort { return netip.AddrPortFrom(a, p) }

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(wait); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Errorf("never: %s", what)
}
