package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

func connPair(t *testing.T) (agent, tunnel *Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "control.sock")
	l, err := Listen(path, ListenOptions{UID: -1, GID: -1})
	must(t, err)
	tunnel, err = Dial(t.Context(), path)
	must(t, err)
	agent, err = l.Accept(t.Context())
	must(t, err)
	must(t, l.Close())
	t.Cleanup(func() { _, _ = agent.Close(), tunnel.Close() })
	return agent, tunnel
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func sockets(text string) *FromAgent {
	return &FromAgent{Message: &FromAgent_Sockets{Sockets: &Sockets{Workload: 7, Error: text}}}
}

func pipes(t *testing.T, n int) []*os.File {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	_, err = w.WriteString("through the descriptor")
	must(t, err)
	files := make([]*os.File, n)
	for i := range files {
		files[i] = r
	}
	return files
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

func TestMessagesAndDescriptors(t *testing.T) {
	agent, tunnel := connPair(t)
	must(t, agent.Send(sockets("x"), pipes(t, MaxFiles)...))
	m, files, err := tunnel.ReceiveFromAgent()
	must(t, err)
	defer CloseFiles(files)
	if len(files) != MaxFiles || m.GetSockets().GetWorkload() != 7 {
		t.Fatalf("got %v with %d descriptors", m, len(files))
	}
	b := make([]byte, 64)
	n, err := files[MaxFiles-1].Read(b)
	if err != nil || string(b[:n]) != "through the descriptor" {
		t.Errorf("got %q, %v", b[:n], err)
	}
	flags, err := unix.FcntlInt(files[0].Fd(), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %#x, %v; want close-on-exec", flags, err)
	}
	must(t, tunnel.Send(&FromTunnel{Message: &FromTunnel_Hello{Hello: &Hello{Version: Version}}}))
	hello, _, err := agent.ReceiveFromTunnel()
	if err != nil || hello.GetHello().GetVersion() != Version {
		t.Errorf("got %v, %v", hello, err)
	}
	must(t, tunnel.Close())
	if _, _, err := agent.ReceiveFromTunnel(); err != io.EOF {
		t.Errorf("got %v, want io.EOF", err)
	}
}

func TestLargest(t *testing.T) {
	agent, tunnel := connPair(t)
	text := string(bytes.Repeat([]byte("a"), MaxMessage-64))
	must(t, agent.Send(sockets(text)))
	m, _, err := tunnel.ReceiveFromAgent()
	if err != nil || m.GetSockets().GetError() != text {
		t.Errorf("got %d bytes, %v", len(m.GetSockets().GetError()), err)
	}
	if err := agent.Send(sockets(text + text)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v, want %v", err, ErrTooLarge)
	}
	if err := agent.Send(sockets(""), pipes(t, MaxFiles+1)...); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v, want %v", err, ErrTooLarge)
	}
}

// TestTruncated: what a peer sends beyond the bounds is an error and leaves no descriptor behind.
func TestTruncated(t *testing.T) {
	tests := map[string]struct {
		size, files int
		want        error
	}{
		"bytes":       {MaxMessage + 2, 1, ErrTruncated},
		"descriptors": {8, MaxFiles + 50, ErrTruncated},
		"no protobuf": {8, 3, nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			agent, tunnel := connPair(t)
			rights, err := rightsOf(pipes(t, test.files))
			must(t, err)
			before := openFiles(t)
			_, _, err = agent.unix.WriteMsgUnix(bytes.Repeat([]byte{0xff}, test.size), rights, nil)
			must(t, err)
			_, files, err := tunnel.ReceiveFromAgent()
			if err == nil || files != nil || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("got %v, %v; want %v", files, err, test.want)
			}
			if after := openFiles(t); after != before {
				t.Errorf("%d open files, want %d", after, before)
			}
		})
	}
}

func TestSocketsArriveNonBlocking(t *testing.T) {
	agent, tunnel := connPair(t)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	must(t, err)
	f := os.NewFile(uintptr(fd), "socket")
	defer func() { _ = f.Close() }()
	must(t, agent.Send(sockets("x"), f))
	_, files, err := tunnel.ReceiveFromAgent()
	must(t, err)
	defer CloseFiles(files)
	if err := files[0].SetDeadline(time.Now().Add(time.Second)); err != nil {
		t.Errorf("deadline on a socket: %v", err)
	}
}

// TestStuckPeer: a peer that does not read costs the sender five seconds, not its life.
func TestStuckPeer(t *testing.T) {
	agent, _ := connPair(t)
	start := time.Now()
	for {
		err := agent.Send(sockets(string(make([]byte, 64<<10))))
		if err == nil {
			continue
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) > 2*sendTimeout {
			t.Errorf("got %v after %s", err, time.Since(start))
		}
		return
	}
}

func TestListen(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "control.sock")
	options := ListenOptions{UID: os.Getuid(), GID: os.Getgid()}
	if _, err := Listen(filepath.Join(folder, "absent", "x"), options); err == nil {
		t.Error("want an error for a folder that is absent")
	}
	stale, err := net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network})
	must(t, err)
	stale.SetUnlinkOnClose(false)
	must(t, stale.Close())
	l, err := Listen(path, options)
	must(t, err)
	if _, err := Listen(path, options); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v, want %v", err, ErrInUse)
	}
	_, _ = l.Accept(t.Context()) // the probe of the second Listen
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("got %v, %v; want mode 0660", info, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Accept(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want to be canceled", err)
	}
	must(t, l.Close())
	must(t, l.Close())
	must(t, os.WriteFile(path, []byte("precious"), 0o600))
	if _, err := Listen(path, options); err == nil {
		t.Error("want a file of another kind to be left alone")
	}
}

func TestPeerUID(t *testing.T) {
	agent, tunnel := connPair(t)
	for _, c := range []*Conn{agent, tunnel} {
		if uid, err := c.PeerUID(); err != nil || int(uid) != os.Getuid() {
			t.Errorf("got %d, %v; want %d", uid, err, os.Getuid())
		}
	}
}

func TestAddresses(t *testing.T) {
	for in, want := range map[string]string{"10.0.0.1": "10.0.0.1", "::ffff:10.0.0.1": "10.0.0.1", "fd00::1": "fd00::1", "fe80::1%eth0": "fe80::1"} {
		if got, err := ToAddr(FromAddr(netip.MustParseAddr(in))); err != nil || got.String() != want {
			t.Errorf("%s: got %s, %v; want %s", in, got, err, want)
		}
	}
	if _, err := ToAddrs([][]byte{{1, 2, 3}}); err == nil {
		t.Error("want an error for three bytes")
	}
	if _, err := ToAddrPort([]byte{1, 2, 3, 4}, 65536); err == nil {
		t.Error("want an error for port 65536")
	}
}

// FuzzDecode: whatever a datagram holds, decoding and reading it does not panic, and what decodes encodes.
func FuzzDecode(f *testing.F) {
	seed, err := proto.Marshal(sockets("x"))
	must(f, err)
	f.Add(seed, []byte{})
	f.Add([]byte{0xff}, unix.UnixRights())
	f.Fuzz(func(t *testing.T, data, oob []byte) {
		m := new(FromAgent)
		if proto.Unmarshal(data, m) == nil {
			if _, err := proto.Marshal(m); err != nil {
				t.Errorf("encode: %v", err)
			}
			_, _ = ToAddrs(m.GetWorkload().GetAddresses())
			_, _ = ToAddrPort(m.GetRoute().GetAddress(), m.GetRoute().GetPort())
		}
		_, _ = parseRights(oob)
	})
}
