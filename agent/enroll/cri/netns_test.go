package cri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// process starts one in a network namespace of its own, and ends it with the test.
func process(t *testing.T) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: makes a network namespace")
	}
	c := exec.Command("sleep", "300")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	return c
}

// named makes a named network namespace, and removes it with the test.
func named(t *testing.T, name string) string {
	t.Helper()
	_ = exec.Command("ip", "netns", "del", name).Run()
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Fatalf("ip netns add: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	return filepath.Join("/run/netns", name)
}

func same(t *testing.T, f *os.File, path string) {
	t.Helper()
	a, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(a, b) {
		t.Errorf("%s is another namespace than %s", f.Name(), path)
	}
}

func TestNetnsByProcessWithEveryRuntime(t *testing.T) {
	pid := process(t).Process.Pid
	for name, shape := range map[string]string{
		"containerd 1.6": containerd16, "containerd 1.7": containerd17, "containerd 2": containerd2, "CRI-O": crio,
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			serve(t, socket, &fakeRuntime{sandboxes: []*fakeSandbox{
				sandbox("other", "q", 0, map[string]string{"info": fmt.Sprintf(shape, os.Getpid(), "/none")}),
				sandbox("u", "p", 0, map[string]string{"info": fmt.Sprintf(shape, pid, "/run/netns/cni-not-mounted-here")}),
			}})
			f, err := open(t, Options{Socket: "unix://" + socket}).Netns(t.Context(), "u")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			same(t, f, fmt.Sprintf("/proc/%d/ns/net", pid))
		})
	}
}

// CRI-O keeps no process for a pod without a shared PID namespace: there is only the path.
func TestNetnsByPath(t *testing.T) {
	path := named(t, "culvert-test-cri-a")
	socket := filepath.Join(t.TempDir(), "s")
	serve(t, socket, &fakeRuntime{sandboxes: []*fakeSandbox{
		sandbox("u", "p", 0, map[string]string{"info": fmt.Sprintf(crio, 0, path)}),
	}})
	f, err := open(t, Options{Socket: socket}).Netns(t.Context(), "u")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	same(t, f, path)
}

// Where the runtime's folder is not mounted, the node's first process sees it.
func TestNetnsByTheNodesRoot(t *testing.T) {
	path := named(t, "culvert-test-cri-b")
	proc := t.TempDir()
	root := filepath.Join(proc, "1", "root")
	for _, folder := range []string{"run/elsewhere", "var"} {
		if err := os.MkdirAll(filepath.Join(root, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// As on most nodes. Followed by name it leads to this machine's /run.
	if err := os.Symlink("/run", filepath.Join(root, "var", "run")); err != nil {
		t.Fatal(err)
	}
	mounted := filepath.Join(root, "run", "elsewhere", "ns")
	if err := os.WriteFile(mounted, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(path, mounted, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mounted, unix.MNT_DETACH) })
	f, err := (&Runtime{proc: proc}).openByPath("/var/run/elsewhere/ns")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	same(t, f, path)
}

// A process that ends while it is looked up must not be taken for another that got its id.
func TestProcessThatEndsMeanwhile(t *testing.T) {
	c := process(t)
	fake := &fakeRuntime{sandboxes: []*fakeSandbox{
		sandbox("u", "p", 0, map[string]string{"info": fmt.Sprintf(containerd17, c.Process.Pid, "/none")}),
	}}
	fake.onStatus = func(_ string, call int) {
		if call == 2 { // the one after the process was held
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	}
	socket := filepath.Join(t.TempDir(), "s")
	serve(t, socket, fake)
	f, err := open(t, Options{Socket: socket}).Netns(t.Context(), "u")
	if err == nil {
		f.Close()
		t.Fatal("the namespace of a process that ended was opened")
	}
	if !strings.Contains(err.Error(), "pod n/p") {
		t.Errorf("the error does not name the pod: %v", err)
	}
}

func TestNetnsRefuses(t *testing.T) {
	hostPod := sandbox("host", "h", 0, map[string]string{"info": `{"pid":1}`})
	hostPod.item.Annotations = map[string]string{"mode": "node"}
	ended := sandbox("ended", "e", 0, nil)
	ended.state = runtime.PodSandboxState_SANDBOX_NOTREADY
	gone := sandbox("gone", "g", 0, nil)
	gone.gone = true
	fake := &fakeRuntime{unlabeled: true, sandboxes: []*fakeSandbox{
		hostPod, ended, gone,
		sandbox("strange", "s", 0, map[string]string{"info": `{}`}),
		sandbox("nowhere", "w", 0, map[string]string{"info": `{"sandboxMetadata":{"NetNSPath":"/nowhere"}}`}),
		sandbox("relative", "r", 0, map[string]string{"info": `{"sandboxMetadata":{"NetNSPath":"etc/passwd"}}`}),
		sandbox("file", "f", 0, map[string]string{"info": `{"sandboxMetadata":{"NetNSPath":"/etc/passwd"}}`}),
	}}
	socket := filepath.Join(t.TempDir(), "s")
	serve(t, socket, fake)
	r := open(t, Options{Socket: socket})
	for uid, want := range map[string]string{
		"":         "no UID",
		"unknown":  ErrNotRunning.Error(),
		"host":     "pod n/h: " + ErrHostNetwork.Error(),
		"ended":    ErrNotRunning.Error(),
		"gone":     "pod n/g: sandbox gone-g: " + ErrNotRunning.Error(),
		"strange":  "pod n/s: sandbox strange-s: the runtime does not tell its network namespace",
		"nowhere":  "pod n/w: network namespace: open /nowhere: no such file",
		"relative": "not absolute",
		"file":     "/etc/passwd is not a network namespace",
	} {
		f, err := r.Netns(t.Context(), uid)
		if err == nil {
			f.Close()
			t.Errorf("%q: opened", uid)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q in it", uid, err, want)
		}
	}
	if _, err := r.Netns(t.Context(), "unknown"); !errors.Is(err, ErrNotRunning) {
		t.Errorf("got %v, want ErrNotRunning", err)
	}
}

func TestLaterAttemptCounts(t *testing.T) {
	pid := process(t).Process.Pid
	old := sandbox("u", "p", 0, map[string]string{"info": `{"pid":1}`})
	late := sandbox("u", "p", 1, map[string]string{"info": fmt.Sprintf(`{"pid":%d}`, pid)})
	old.item.Id, late.item.Id = "old", "late"
	socket := filepath.Join(t.TempDir(), "s")
	serve(t, socket, &fakeRuntime{sandboxes: []*fakeSandbox{late, old}})
	f, err := open(t, Options{Socket: socket}).Netns(t.Context(), "u")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	same(t, f, fmt.Sprintf("/proc/%d/ns/net", pid))
}

func TestSandboxes(t *testing.T) {
	fake := &fakeRuntime{onStatus: func(string, int) { time.Sleep(2 * time.Millisecond) }}
	for i := range 200 {
		s := sandbox(fmt.Sprint("u", i), fmt.Sprintf("p%03d", i), 0, map[string]string{"info": fmt.Sprintf(containerd16, 100+i, "/n")})
		switch i {
		case 7:
			s.gone = true
		case 8:
			s.info = map[string]string{"info": "?"}
		case 9:
			s.item.Annotations, s.info = map[string]string{"mode": "node"}, nil
		}
		fake.sandboxes = append(fake.sandboxes, s)
	}
	socket := filepath.Join(t.TempDir(), "s")
	serve(t, socket, fake)
	all, err := open(t, Options{Socket: socket}).Sandboxes(t.Context())
	if err == nil || !strings.Contains(err.Error(), "pod n/p008") || strings.Contains(err.Error(), "p007") {
		t.Errorf("error: %v", err)
	}
	if len(all) != 198 {
		t.Fatalf("%d sandboxes, want 198", len(all))
	}
	first, host := all[0], all[7]
	if first.Ref() != "n/p000" || first.UID != "u0" || first.PID != 100 || first.NetnsPath != "/n" || first.HostNetwork || first.Created.IsZero() {
		t.Errorf("first: %+v", first)
	}
	if host.Name != "p009" || !host.HostNetwork {
		t.Errorf("host: %+v", host)
	}
	if fake.most > maxStatusCalls {
		t.Errorf("%d status calls at a time, want at most %d", fake.most, maxStatusCalls)
	}
}

func TestRuntimeThatRestarts(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	r := open(t, Options{Socket: socket})
	if _, err := r.Sandboxes(t.Context()); err == nil || !strings.Contains(err.Error(), socket) {
		t.Fatalf("without a runtime: %v, want an error that names the socket", err)
	}
	for round := range 3 {
		fake := &fakeRuntime{sandboxes: []*fakeSandbox{sandbox("u", fmt.Sprint("p", round), 0, map[string]string{"info": `{"pid":1}`})}}
		stop := serve(t, socket, fake)
		deadline := time.Now().Add(10 * time.Second)
		for {
			all, err := r.Sandboxes(t.Context())
			if err == nil && len(all) == 1 && all[0].Name == fmt.Sprint("p", round) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("round %d: %v, %v", round, all, err)
			}
			time.Sleep(20 * time.Millisecond)
		}
		stop()
		begin := time.Now()
		if _, err := r.Sandboxes(t.Context()); err == nil {
			t.Fatal("a runtime that is gone answered")
		}
		if took := time.Since(begin); took > dialTimeout {
			t.Errorf("it took %v to tell that the runtime is gone", took)
		}
	}
}

// hanging never answers until it is cancelled.
type hanging struct {
	runtime.UnimplementedRuntimeServiceServer
}

func (hanging) ListPodSandbox(ctx context.Context, _ *runtime.ListPodSandboxRequest) (*runtime.ListPodSandboxResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestRuntimeThatHangs(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	serve(t, socket, hanging{})
	ctx, stop := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer stop()
	if _, err := open(t, Options{Socket: socket}).Netns(ctx, "u"); err == nil {
		t.Error("a runtime that hangs answered")
	}
}

func TestFirstSocketThatAnswers(t *testing.T) {
	folder := t.TempDir()
	stale, good := filepath.Join(folder, "stale"), filepath.Join(folder, "good")
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	serve(t, good, &fakeRuntime{})
	r := open(t, Options{Socket: "auto"})
	r.sockets = []string{filepath.Join(folder, "missing"), stale, good}
	got, err := r.Version(t.Context())
	if want := "fake 1.0 at " + good; err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	none := open(t, Options{})
	none.sockets = []string{filepath.Join(folder, "a"), filepath.Join(folder, "b")}
	if _, err := none.Version(t.Context()); err == nil || !strings.Contains(err.Error(), ErrNoSocket.Error()) {
		t.Errorf("got %v, want %v", err, ErrNoSocket)
	}
}
