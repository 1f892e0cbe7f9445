package tunnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/tunnel/control"
)

// fakeRedirection stands for the kernel: the destination belongs to the listener, and a delivery socket
// is connected to the application here, where the kernel would swap the addresses.
type fakeRedirection struct {
	mu           sync.Mutex
	destinations map[netip.AddrPort]netip.AddrPort
}

func (f *fakeRedirection) OriginalDestination(c *net.TCPConn, _ []netip.Addr) (netip.AddrPort, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, ok := f.destinations[addrPort(c.LocalAddr())]
	if !ok {
		return d, errors.New("unknown")
	}
	return d, nil
}

func (f *fakeRedirection) Deliver(fd int, app netip.AddrPort) error {
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(app.Addr(), 0))); err != nil {
		return err
	}
	err := unix.Connect(fd, sockaddr(app))
	if errors.Is(err, unix.EINPROGRESS) {
		return nil
	}
	return err
}

// node is one tunnel with its agent and pods.
type node struct {
	t           *testing.T
	path        string
	redirection *fakeRedirection
	logs        *syncBuffer
	level       slog.LevelVar // of logs
	tunnel      *tunnel       // as started last
	stop        func() error

	agent    *fakeAgent
	routes   map[netip.AddrPort]*control.Route
	messages []*control.FromAgent // sent to every tunnel that connects
	files    map[int][]*os.File   // of messages
	sameNode SameNodeMode
	stingy   bool // hand out no sockets

	mu   sync.Mutex
	conn *control.Conn // of the tunnel that is connected
	said []*control.FromTunnel
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newNode(t *testing.T, ca *authority) *node {
	n := &node{
		t: t, path: filepath.Join(t.TempDir(), "control.sock"), logs: &syncBuffer{},
		redirection: &fakeRedirection{destinations: map[netip.AddrPort]netip.AddrPort{}},
		routes:      map[netip.AddrPort]*control.Route{}, files: map[int][]*os.File{},
		messages: []*control.FromAgent{
			{Message: &control.FromAgent_Welcome{Welcome: &control.Welcome{Version: 1, Node: "n", TrustDomain: ca.domain}}},
			ca.bundle(),
		},
	}
	n.level.Set(slog.LevelDebug)
	return n
}

// pod announces a workload with an HBONE listener and an outbound listener whose address is returned.
func (n *node) pod(id uint64, ip, identity string, modes ...*control.PortMode) string {
	n.t.Helper()
	var files []*os.File
	var outbound string
	for _, port := range []string{":0", ":15008"} {
		l, err := net.Listen("tcp4", ip+port)
		must(n.t, err)
		if port == ":0" {
			outbound = l.Addr().String()
		}
		f, err := l.(*net.TCPListener).File()
		must(n.t, err)
		must(n.t, l.Close())
		n.t.Cleanup(func() { _ = f.Close() })
		files = append(files, f)
	}
	n.files[len(n.messages)] = files
	n.messages = append(n.messages, &control.FromAgent{Message: &control.FromAgent_Workload{Workload: &control.Workload{
		Id: id, Namespace: "default", Name: fmt.Sprintf("pod-%d", id), Identity: identity,
		Addresses:   [][]byte{control.FromAddr(netip.MustParseAddr(ip))},
		DefaultMode: &control.PortMode{Mode: control.Mode_MODE_PERMISSIVE, Policy: "default"}, PortModes: modes,
		Listeners: []control.ListenerKind{control.ListenerKind_LISTENER_KIND_OUTBOUND, control.ListenerKind_LISTENER_KIND_HBONE},
	}}})
	return outbound
}

// send makes messages part of what the agent says first.
func (n *node) send(m ...*control.FromAgent) { n.messages = append(n.messages, m...) }

// direct says where connections accepted on an outbound listener wanted to go, and what to do about them.
func (n *node) destination(outbound string, endpoints ...*control.Endpoint) {
	to := netip.AddrPortFrom(netip.MustParseAddr("10.9.9.9"), uint16(1000+len(n.routes)))
	n.redirection.destinations[netip.MustParseAddrPort(outbound)] = to
	n.routes[to] = &control.Route{Endpoints: endpoints, Reason: "for the test"}
}

func endpointTo(address string, action control.Action, identity string, local uint64) *control.Endpoint {
	a := netip.MustParseAddrPort(address)
	return &control.Endpoint{Address: control.FromAddr(a.Addr()), Port: uint32(a.Port()), Action: action, Identity: identity, LocalWorkload: local}
}

func (n *node) start() {
	n.t.Helper()
	n.agent = n.startAgent()
	ctx, cancel := context.WithCancel(context.Background())
	hard, abort := context.WithCancel(context.Background())
	n.tunnel = newTunnel(ctx, hard, Options{
		ControlPath: n.path, DrainTimeout: 100 * time.Millisecond, AgentGrace: time.Second, SameNode: n.sameNode,
		Redirection: n.redirection,
		Logger:      slog.New(slog.NewTextHandler(n.logs, &slog.HandlerOptions{Level: &n.level})), LogLevel: &n.level,
		Version: "v1.2.3",
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer abort()
		n.tunnel.run(abort)
	}()
	n.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case <-done:
			return nil
		case <-time.After(10 * time.Second):
			return errors.New("tunnel did not end")
		}
	})
	n.t.Cleanup(func() {
		must(n.t, n.stop())
		n.agent.stop()
		if n.t.Failed() {
			n.t.Log(n.logs.String())
		}
	})
	n.await("agent connected")
}

func (n *node) await(text string) {
	n.t.Helper()
	deadline := time.Now().Add(8 * time.Second)
	for !strings.Contains(n.logs.String(), text) {
		if time.Now().After(deadline) {
			n.t.Fatalf("log has no %q:\n%s", text, n.logs.String())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

type fakeAgent struct{ stop func() }

func (n *node) startAgent() *fakeAgent {
	n.mu.Lock()
	n.conn, n.said = nil, nil
	n.mu.Unlock()
	l, err := control.Listen(n.path, control.ListenOptions{UID: -1, GID: -1})
	must(n.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept(ctx)
			if err != nil {
				return
			}
			wg.Go(func() { n.serveAgent(ctx, c) })
		}
	})
	return &fakeAgent{stop: sync.OnceFunc(func() { cancel(); wg.Wait(); _ = l.Close() })}
}

func (n *node) serveAgent(ctx context.Context, c *control.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	defer func() { _ = c.Close() }()
	for i, m := range n.messages {
		if c.Send(m, n.files[i]...) != nil {
			return
		}
	}
	n.mu.Lock()
	n.conn, n.said = c, nil
	n.mu.Unlock()
	for {
		m, _, err := c.ReceiveFromTunnel()
		if err != nil {
			return
		}
		n.mu.Lock()
		n.said = append(n.said, m)
		n.mu.Unlock()
		if need := m.GetNeedSockets(); need != nil && !n.stingy {
			n.sendSockets(c, need)
		}
		if ask := m.GetRouteRequest(); ask != nil && !ask.GetForget() {
			n.sendRoute(c, ask)
		}
	}
}

func (n *node) sendSockets(c *control.Conn, need *control.NeedSockets) {
	var files []*os.File
	for range need.GetCount() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			files = append(files, os.NewFile(uintptr(fd), "socket"))
		}
	}
	_ = c.Send(&control.FromAgent{Message: &control.FromAgent_Sockets{Sockets: &control.Sockets{Workload: need.GetWorkload()}}}, files...)
	control.CloseFiles(files)
}

func (n *node) sendRoute(c *control.Conn, ask *control.RouteRequest) {
	to, err := control.ToAddrPort(ask.GetAddress(), ask.GetPort())
	route := n.routes[to]
	if err != nil || route == nil {
		return
	}
	answer := &control.Route{Workload: ask.GetWorkload(), Address: ask.GetAddress(), Port: ask.GetPort(), Endpoints: route.Endpoints, Reason: route.Reason, Service: route.Service}
	_ = c.Send(&control.FromAgent{Message: &control.FromAgent_Route{Route: answer}})
}

// push sends messages to the tunnel that is connected.
func (n *node) push(messages ...*control.FromAgent) {
	n.t.Helper()
	var c *control.Conn
	n.eventually("an agent that has said everything", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		c = n.conn
		return c != nil
	})
	for _, m := range messages {
		must(n.t, c.Send(m))
	}
}

// give pushes an SVID and waits until the tunnel has taken it.
func (n *node) give(m *control.FromAgent) {
	n.t.Helper()
	id := spiffeid.RequireFromString(m.GetSvid().GetIdentity())
	n.push(m)
	n.eventually("the SVID", func() bool {
		v, err := n.tunnel.ids.usable(id)
		return err == nil && bytes.Equal(v.certificate.Certificate[0], m.GetSvid().GetChain()[0])
	})
}

// heard returns what the tunnel that is connected has said, apart from sockets and routes.
func (n *node) heard() (said []*control.FromTunnel) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range n.said {
		if m.GetNeedSockets() == nil && m.GetRouteRequest() == nil {
			said = append(said, m)
		}
	}
	return said
}

func (n *node) eventually(what string, is func() bool) {
	n.t.Helper()
	for deadline := time.Now().Add(8 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatalf("not seen: %s\n%s", what, n.logs.String())
		}
	}
}

// application echoes what it gets and returns its address.
func application(t *testing.T, ip string) string {
	t.Helper()
	l, err := net.Listen("tcp4", ip+":0")
	must(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

// call sends a message through and returns what came back.
func call(from, message string) (string, error) {
	c, err := net.DialTimeout("tcp4", from, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, message); err != nil {
		return "", err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	got, err := io.ReadAll(c)
	return string(got), err
}

func wantEcho(t *testing.T, from string) {
	t.Helper()
	if got, err := call(from, "hello"); err != nil || got != "hello" {
		t.Fatalf("got %q, %v; want the echo", got, err)
	}
}

func wantReset(t *testing.T, from string) {
	t.Helper()
	if got, err := call(from, "hello"); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ENOTCONN) {
		t.Fatalf("got %q, %v; want a reset", got, err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
