package lab_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/e2e/lab"
)

// The test binary plays the processes in the pods, too.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "play" {
		if err := play(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func play(role string, args []string) error {
	switch role {
	case "echo": // greets with the caller's address and sends back one line
		l, err := net.Listen("tcp", args[0])
		if err != nil {
			return err
		}
		fmt.Println("ready")
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			go func() {
				defer c.Close()
				line, _ := bufio.NewReader(c).ReadString('\n')
				fmt.Fprintf(c, "%s %s", c.RemoteAddr(), line)
			}()
		}
	case "say":
		c, err := net.DialTimeout("tcp", args[0], 2*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		fmt.Fprintln(c, args[1])
		_, err = io.Copy(os.Stdout, c)
		return err
	case "where":
		b, err := os.ReadFile("/proc/self/cgroup")
		ifs, _ := net.Interfaces()
		fmt.Printf("%s%d interfaces\n", b, len(ifs))
		return err
	case "sleep":
		time.Sleep(time.Minute)
		return nil
	}
	return fmt.Errorf("unknown role %q", role)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: makes network namespaces and attaches BPF programs")
	}
}

func options(t *testing.T) lab.Options {
	t.Helper()
	needRoot(t)
	return lab.Options{Prefix: fmt.Sprintf("labtest%d", os.Getpid()), RunDir: filepath.Join(t.TempDir(), "run")}
}

// small is a lab with one pod on the first node and two on the second.
func small(t *testing.T, o lab.Options) (l *lab.Lab, pods []*lab.Pod) {
	t.Helper()
	l, err := lab.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, p := range []struct{ node, name string }{{"a", "one"}, {"b", "two"}, {"b", "three"}} {
		pods = append(pods, addPod(t, l, p.node, p.name))
	}
	return l, pods
}

func addPod(t *testing.T, l *lab.Lab, node, name string) *lab.Pod {
	t.Helper()
	var on *lab.Node
	for _, n := range l.Nodes() {
		if n.Name == node {
			on = n
		}
	}
	if on == nil {
		var err error
		if on, err = l.AddNode(node); err != nil {
			t.Fatal(err)
		}
	}
	p, err := l.AddPod(on, "test", name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func self(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// serve starts an echo server in the pod, on port 80 of all its addresses.
func serve(t *testing.T, p *lab.Pod) *lab.Cmd {
	t.Helper()
	c := p.Command(context.Background(), self(t), "play", "echo", ":80")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("server in %s: %q, %v", p, line, err)
	}
	return c
}

func say(t *testing.T, from *lab.Pod, to netip.Addr, text string) string {
	t.Helper()
	out, err := from.Command(t.Context(), self(t), "play", "say", netip.AddrPortFrom(to, 80).String(), text).CombinedOutput()
	if err != nil {
		t.Fatalf("%s -> %s: %v: %s", from, to, err, out)
	}
	return string(out)
}

func TestPodsReachEachOtherAndTheLinkIsSeen(t *testing.T) {
	l, pods := small(t, options(t))
	for _, p := range pods {
		serve(t, p)
	}
	for _, from := range pods {
		for _, to := range pods {
			for _, version := range []int{4, 6} {
				t.Run(fmt.Sprintf("%s to %s over IPv%d", from.Name, to.Name, version), func(t *testing.T) {
					capture, err := l.Nodes()[0].Capture(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					marker := "marker-" + strings.ReplaceAll(t.Name(), " ", "_")
					got := say(t, from, to.IP(version), marker)
					rec := capture.Stop()
					if addr, err := netip.ParseAddrPort(strings.Fields(got)[0]); err != nil || addr.Addr().Unmap() != from.IP(version) {
						t.Errorf("the server saw %q, want an address of %s", got, from.IP(version))
					}
					if crosses := from.Node != to.Node; rec.Contains(marker) != crosses {
						t.Errorf("marker on the link: %t, want %t (%d packets)", rec.Contains(marker), crosses, rec.Packets)
					}
					if rec.Contains("no such marker") || rec.Dropped != 0 {
						t.Errorf("found what was not sent, or dropped %d packets", rec.Dropped)
					}
				})
			}
		}
	}
}

func TestCommandStartsInsideNamespaceAndCgroup(t *testing.T) {
	o := options(t)
	l, pods := small(t, o)
	node := l.Nodes()[0]
	tests := []struct {
		name       string
		cmd        *lab.Cmd
		cgroup     string
		interfaces int
	}{
		{"pod", pods[0].Command(t.Context(), self(t), "play", "where"), pods[0].Cgroup, 2},
		{"node", node.Command(t.Context(), self(t), "play", "where"), node.Cgroup + "/node", 3},
		{"isolated", node.IsolatedCommand(t.Context(), self(t), "play", "where"), node.Cgroup + "/node", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, err := tt.cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			path := tt.cgroup[strings.Index(tt.cgroup, "/"+o.Prefix):]
			if !strings.Contains(string(out), path+"\n") {
				t.Errorf("cgroups are %q, want %s", out, path)
			}
			if !strings.Contains(string(out), fmt.Sprintf("\n%d interfaces", tt.interfaces)) {
				t.Errorf("got %q, want %d interfaces", out, tt.interfaces)
			}
		})
	}
}

func TestPodsHaveNoWayOut(t *testing.T) {
	_, pods := small(t, options(t))
	for _, to := range []string{"192.0.2.1:80", "[2001:db8::1]:80"} {
		out, err := pods[0].Command(t.Context(), self(t), "play", "say", to, "x").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "unreachable") && !strings.Contains(string(out), "no route to host") {
			t.Errorf("connect to %s: %v: %s, want unreachable", to, err, out)
		}
	}
}

// leftovers names what of the lab still exists.
func leftovers(t *testing.T, o lab.Options) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{"/run/netns/" + o.Prefix + "-*", o.RunDir} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, names...)
	}
	for _, file := range []string{"/proc/self/mountinfo", "/proc/self/cgroup"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), o.Prefix) || strings.Contains(string(b), o.RunDir) {
			found = append(found, file+" mentions it")
		}
	}
	return found
}

func TestCloseLeavesNothing(t *testing.T) {
	o := options(t)
	l, pods := small(t, o)
	server := serve(t, pods[0])
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, o); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
	if _, err := os.Stat(pods[0].Cgroup); err == nil {
		t.Error("the cgroup still exists")
	}
	if err := server.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("server ended with %v, want killed", err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if err := lab.Down(o.RunDir); err != nil {
		t.Errorf("Down after Close: %v", err)
	}
}

func TestDownAfterCrash(t *testing.T) {
	o := options(t)
	l, pods := small(t, o)
	serve(t, pods[0])
	serve(t, pods[1])

	_, err := lab.New(t.Context(), o)
	var inTheWay *lab.InTheWayError
	if !errors.As(err, &inTheWay) {
		t.Fatalf("second New: %v, want an InTheWayError", err)
	}
	for _, want := range []string{o.RunDir, pods[0].NetnsPath, filepath.Base(filepath.Dir(l.Nodes()[0].Cgroup))} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not name %s: %v", want, err)
		}
	}
	// Something vanished, as after a half-done teardown.
	if err := pods[2].Node.Do(func() error { return os.Remove(pods[2].Cgroup) }); err != nil {
		t.Fatal(err)
	}
	if err := lab.Down(o.RunDir); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, o); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
	if err := lab.Down(o.RunDir); err != nil {
		t.Errorf("second Down: %v", err)
	}
	small(t, o) // and the way is free
}

func TestDownTouchesOnlyLabs(t *testing.T) {
	needRoot(t)
	foreign := t.TempDir()
	if err := lab.Down(foreign); !errors.Is(err, lab.ErrNotALab) {
		t.Errorf("Down of a foreign directory: %v, want ErrNotALab", err)
	}
	for _, state := range []string{
		`{"prefix":"x","cgroupRoot":"/sys/fs/cgroup","cgroups":["/sys/fs/cgroup/system.slice"]}`,
		`{"prefix":"x","cgroupRoot":"/sys/fs/cgroup","cgroups":["/sys/fs/cgroup/x/../y"]}`,
		`{"prefix":"x","namespaces":["y-node-a"]}`,
		`{"prefix":"x","namespaces":["x-/../../etc/passwd"]}`,
		`{"prefix":"../x"}`,
		`{`,
	} {
		if err := os.WriteFile(filepath.Join(foreign, "lab.json"), []byte(state), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := lab.Down(foreign); err == nil {
			t.Errorf("Down accepted the state %s", state)
		}
	}
	if _, err := os.Stat(filepath.Join(foreign, "lab.json")); err != nil {
		t.Errorf("the directory was touched: %v", err)
	}
}

func TestDownSparesRecycledProcesses(t *testing.T) {
	o := options(t)
	l, pods := small(t, o)
	bystander := pods[0].Node.Command(t.Context(), "/proc/self/exe", "play", "sleep")
	bystander.Path = self(t)
	// Out of the lab's cgroup, so that only the process list could hit it.
	plain := bystander.Cmd
	plain.SysProcAttr = nil
	if err := plain.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- plain.Wait() }()
	t.Cleanup(func() { _ = plain.Process.Kill() })
	file := filepath.Join(l.RunDir(), "lab.json")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	recycled := fmt.Sprintf(`"processes": [{"pid": %d, "start": 1, "name": "earlier"}]`, plain.Process.Pid)
	changed := strings.Replace(string(b), `"processes": null`, recycled, 1)
	if changed == string(b) {
		t.Fatalf("state has another shape: %s", b)
	}
	if err := os.WriteFile(file, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := lab.Down(o.RunDir); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		t.Errorf("the bystander ended: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
}
