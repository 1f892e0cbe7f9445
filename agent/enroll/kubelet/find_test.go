package kubelet

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const worldEnv, actorEnv = "KUBELET_TEST_WORLD", "KUBELET_TEST_ACTOR"

// TestMain makes a small node: the tests are init in a process namespace of their own, below a cgroup of their own.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(actorEnv) != "":
		os.Exit(act())
	case os.Getenv(worldEnv) != "":
		if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
			fmt.Fprintln(os.Stderr, "mount /proc:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	case os.Geteuid() != 0:
		os.Exit(m.Run())
	}
	code, err := runInWorld()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func runInWorld() (int, error) {
	root, err := (&finder{proc: "/proc"}).mountOfCgroup2()
	if err != nil {
		return 1, err
	}
	dir, err := os.MkdirTemp(root, "culvert-kubelet-test-")
	if err != nil {
		return 1, err
	}
	defer removeCgroups(dir)
	cgroup, err := os.Open(dir)
	if err != nil {
		return 1, err
	}
	defer cgroup.Close()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), worldEnv+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID, Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
		UseCgroupFD: true, CgroupFD: int(cgroup.Fd()),
	}
	runtime.LockOSThread() // Pdeathsig means this thread
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// removeCgroups also removes what a failed test left.
func removeCgroups(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			removeCgroups(filepath.Join(dir, e.Name()))
		}
	}
	os.Remove(dir)
}

// act is the main function of the processes that the tests look at: they start a kubelet if they are told to, and wait.
func act() int {
	if next := os.Getenv(actorEnv); next != "wait" {
		cmd := exec.Command(next)
		cmd.Env = environment("wait")
		cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
		if err := cmd.Run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return 0
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	return 0
}

// environment of an actor. The race detector would have it sleep for a second at its end.
func environment(does string) []string {
	return []string{actorEnv + "=" + does, "GORACE=atexit_sleep_ms=0"}
}

// node is the cgroup that stands for the root of all.
func node(t *testing.T) string {
	t.Helper()
	dir := os.Getenv(worldEnv)
	if dir == "" {
		t.Fatal("needs root: makes processes in namespaces and cgroups")
	}
	return dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// actor is a process to start.
type actor struct {
	comm, cgroup string
	starts       string // the name of the process it starts, itself doing nothing more
	flags        uintptr
	uid          uint32
	exe          func(t *testing.T, path string)
}

func (a actor) start(t *testing.T) int {
	t.Helper()
	cgroup := node(t)
	for _, name := range strings.Split(a.cgroup, "/") {
		next := filepath.Join(cgroup, name)
		if err := os.Mkdir(next, 0o755); err == nil {
			t.Cleanup(func() { must(t, os.Remove(next)) })
		}
		cgroup = next
	}
	dir, err := os.Open(cgroup)
	must(t, err)
	defer dir.Close()
	program := filepath.Join(programs(t), a.comm)
	copyProgram(t, program)
	if a.exe != nil {
		a.exe(t, program)
	}
	cmd := exec.Command(program)
	cmd.Env = environment("wait")
	if a.starts != "" {
		next := filepath.Join(programs(t), a.starts)
		copyProgram(t, next)
		cmd.Env = environment(next)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: a.flags, UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if a.uid != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.uid}
	}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		in.Close() // all of them end when nobody holds the pipe
		io.Copy(io.Discard, out)
		cmd.Wait()
	})
	_, err = io.ReadFull(out, make([]byte, len("ready\n")))
	must(t, err)
	return cmd.Process.Pid
}

// programs is a folder that other users may enter, unlike those that tests get.
func programs(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kubelet-test-")
	must(t, err)
	must(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func copyProgram(t *testing.T, to string) {
	t.Helper()
	from, err := os.Open("/proc/self/exe")
	must(t, err)
	defer from.Close()
	f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	must(t, err)
	_, err = io.Copy(f, from)
	must(t, errors.Join(err, f.Close()))
}

func TestKubeletIsFound(t *testing.T) {
	actor{comm: "kubelet", cgroup: "system.slice/kubelet.service"}.start(t)
	actor{comm: "kubelet", cgroup: "kubepods.slice/pod", flags: unix.CLONE_NEWNS}.start(t)
	want := filepath.Join(node(t), "system.slice/kubelet.service")
	for _, root := range []string{node(t), node(t) + "/", ""} { // "": all of the machine's, by the kernel's path
		if got, err := Find("/proc", root); err != nil || got != want {
			t.Errorf("Find below %q: %q, %v, want %q", root, got, err, want)
		}
	}
}

// In a cgroup namespace below, the kernel's path to the kubelet begins with "/..".
func TestKubeletIsFoundFromAnotherCgroupNamespace(t *testing.T) {
	actor{comm: "kubelet", cgroup: "kubelet.slice/kubelet.service"}.start(t)
	agent := filepath.Join(node(t), "agent")
	must(t, os.Mkdir(agent, 0o755))
	t.Cleanup(func() { must(t, os.Remove(agent)) })
	own := filepath.Join(node(t), "cgroup.procs")
	must(t, os.WriteFile(filepath.Join(agent, "cgroup.procs"), []byte("0"), 0))
	t.Cleanup(func() { must(t, os.WriteFile(own, []byte("0"), 0)) })
	type answer struct {
		dir string
		err error
	}
	answers := make(chan answer)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the namespace
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			answers <- answer{err: err}
			return
		}
		var a answer
		a.dir, a.err = Find("/proc", node(t))
		answers <- a
	}()
	a := <-answers
	if want := filepath.Join(node(t), "kubelet.slice/kubelet.service"); a.err != nil || a.dir != want {
		t.Errorf("Find: %q, %v, want %q", a.dir, a.err, want)
	}
}

func TestWhoIsNotTheKubelet(t *testing.T) {
	const service = "kubelet.service"
	tests := []struct {
		name   string
		actors []actor
		want   error
		says   string
	}{
		{"nobody", nil, ErrNotFound, ""},
		{"another name", []actor{{comm: "cubelet", cgroup: service}}, ErrNotFound, ""},
		{"own network namespace", []actor{{comm: "kubelet", cgroup: service, flags: unix.CLONE_NEWNET}}, ErrNotFound, "net namespace"},
		{"own mount namespace", []actor{{comm: "kubelet", cgroup: service, flags: unix.CLONE_NEWNS}}, ErrNotFound, "mnt namespace"},
		{"own process namespace", []actor{{comm: "kubelet", cgroup: service, flags: unix.CLONE_NEWPID}}, ErrNotFound, "pid namespace"},
		{"a user's", []actor{{comm: "kubelet", cgroup: service, uid: 1000}}, ErrNotFound, "user 1000"},
		{"a user's program", []actor{{comm: "kubelet", cgroup: service, exe: func(t *testing.T, path string) { must(t, os.Chown(path, 1000, 0)) }}}, ErrNotFound, "belongs to user 1000"},
		{"a program that all can write", []actor{{comm: "kubelet", cgroup: service, exe: func(t *testing.T, path string) { must(t, os.Chmod(path, 0o777)) }}}, ErrNotFound, "can be written"},
		{"in a pod's cgroup", []actor{{comm: "kubelet", cgroup: "kubelet-kubepods.slice/pod"}}, ErrNotFound, "cgroup of a pod"},
		{"in the root of cgroups", []actor{{comm: "kubelet", cgroup: "."}}, ErrNotFound, "root of all"},
		{"two", []actor{{comm: "kubelet", cgroup: service}, {comm: "kubelet", cgroup: "other.service"}}, ErrAmbiguous, "other.service"},
		{"in k3s", []actor{{comm: "k3s-server", cgroup: "k3s.service"}}, ErrNotFound, "inside itself"},
		{"in MicroK8s", []actor{{comm: "kubelite", cgroup: "kubelite.service"}}, ErrNotFound, "inside itself"},
		{"with who started it", []actor{{comm: "rke2", starts: "kubelet", cgroup: "rke2.service"}}, ErrNotFound, "(rke2), which started it"},
		{"with a container", []actor{{comm: "kubelet", cgroup: service}, {comm: "sleep", cgroup: service, flags: unix.CLONE_NEWNS}}, ErrNotFound, "in a container"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, a := range tt.actors {
				a.start(t)
			}
			got, err := Find("/proc", node(t))
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("Find: %q, %v, want %v that says %q", got, err, tt.want, tt.says)
			}
		})
	}
}

func TestNoHostNamespaces(t *testing.T) {
	node(t)
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		_, err := Find("/proc", "")
		done <- err
	}()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "hostNetwork") {
		t.Errorf("Find from another network: %v", err)
	}
}
