package observe

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/culvert-mesh/culvert/e2e/demo"
)

// statusPort is where agents and tunnels serve, each in a network namespace of its own.
const statusPort = "15020"

// wrapper is the program as the demo runs it: agents and tunnels serve their status too, and leave a note of who they are.
const wrapper = `#!/bin/sh
case "$*" in
"agent "*|*" -- tunnel "*)
	echo "$$ $*" >>%[2]s/processes
	exec %[1]s "$@" --status-address :` + statusPort + `
esac
exec %[1]s "$@"
`

// startMesh starts the demo's mesh and returns the folder with the notes.
func startMesh(t *testing.T) (*demo.Mesh, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: makes network namespaces and attaches BPF programs")
	}
	dir := t.TempDir()
	program, script := filepath.Join(dir, "culvert"), filepath.Join(dir, "wrapper")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, filepath.Join(root, "cmd/culvert")).CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	if err := os.WriteFile(script, fmt.Appendf(nil, wrapper, program, dir), 0o755); err != nil {
		t.Fatal(err)
	}
	// The unprivileged tunnel has to pass through the folders above its socket.
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	m, err := demo.StartMesh(t.Context(), demo.MeshOptions{
		Binary: script, RunDir: filepath.Join(dir, "run"), Prefix: fmt.Sprintf("observe%d", os.Getpid()), Progress: func(s string) { t.Log(s) },
	})
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return m, dir
}

// target is a process that Prometheus scrapes, and where.
type target struct{ job, node, address string }

// targets makes every agent and tunnel reachable from here.
func targets(t *testing.T, dir string) []target {
	t.Helper()
	notes, err := os.ReadFile(filepath.Join(dir, "processes"))
	if err != nil {
		t.Fatal(err)
	}
	var all []target
	for note := range strings.Lines(string(notes)) {
		pid, arguments, _ := strings.Cut(strings.TrimSpace(note), " ")
		job := "culvert-tunnel"
		if strings.HasPrefix(arguments, "agent ") {
			job = "culvert-agent"
		}
		_, socket, _ := strings.Cut(arguments, "--control ")
		socket, _, _ = strings.Cut(socket, " ")
		namespace, err := netns.GetFromPath("/proc/" + pid + "/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { namespace.Close() })
		if err := setLoopbackUp(namespace); err != nil {
			t.Fatal(err)
		}
		all = append(all, target{job, filepath.Base(filepath.Dir(socket)), forward(t, namespace)})
	}
	return all
}

// setLoopbackUp is for tunnels, whose namespace has nothing else.
func setLoopbackUp(namespace netns.NsHandle) error {
	h, err := netlink.NewHandleAt(namespace)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	return h.LinkSetUp(lo)
}

// forward listens here for what is served there.
func forward(t *testing.T, namespace netns.NsHandle) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			here, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer here.Close()
				there, err := dialIn(namespace, "127.0.0.1:"+statusPort)
				if err != nil {
					return // the process is gone: so it looks to Prometheus, too
				}
				defer there.Close()
				go func() {
					_, _ = io.Copy(there, here)
					there.Close()
				}()
				_, _ = io.Copy(here, there)
			}()
		}
	}()
	return l.Addr().String()
}

// dialIn connects from inside a network namespace.
func dialIn(namespace netns.NsHandle, address string) (c net.Conn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: the thread ends with the goroutine, and its namespace with it.
		runtime.LockOSThread()
		if err = netns.Set(namespace); err == nil {
			c, err = net.Dial("tcp", address)
		}
	}()
	<-done
	return c, err
}
