package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/agent/datapath/flows"
	e2elab "github.com/culvert-mesh/culvert/e2e/lab"
	"github.com/culvert-mesh/culvert/policy"
)

func tcxAttachTypes() []ebpf.AttachType {
	return []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress}
}

func disconnect(fd int) error {
	var a unix.RawSockaddr // AF_UNSPEC
	_, _, e := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&a)), unsafe.Sizeof(a))
	if e != 0 {
		return e
	}
	return nil
}

// helper is the tunnel: another process, nobody's, without a capability, that is killed if it calls bpf(2). It is handed
// an accepted connection and a socket to deliver with, as descriptors 3 and 4.
func helper(what string) int {
	err := runHelper(what)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func runHelper(what string) error {
	const forbidden = helperEnv + "_FORBIDDEN=1"
	if !slices.Contains(os.Environ(), forbidden) {
		if err := e2elab.ForbidBPF(); err != nil {
			return err
		}
		return syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), forbidden))
	}
	if what == callBPF {
		_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_MAP_LOOKUP_ELEM, 0, 0)
		return fmt.Errorf("bpf(2) returned: %w", errno)
	}
	return tunnel(netip.MustParseAddrPort(what))
}

const callBPF = "call bpf"

func tunnel(client netip.AddrPort) error {
	c, err := net.FileConn(os.NewFile(3, "connection"))
	if err != nil {
		return err
	}
	to, err := destination(c.(*net.TCPConn))
	if err != nil {
		return err
	}
	if err := (flows.Flows{}).Deliver(4, port(pod4, 80)); err != nil {
		return err
	}
	if err := unix.Connect(4, sockaddr(client)); err != nil {
		return fmt.Errorf("deliver: %w", err)
	}
	b := make([]byte, 100)
	n, err := unix.Read(4, b)
	if err != nil {
		return err
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); fields[0] == "CapPrm:" || fields[0] == "CapEff:" || fields[0] == "Seccomp:" {
			fmt.Printf("%s%s ", fields[0], fields[1])
		}
	}
	fmt.Printf("uid %d, wanted %s, application sees %s", os.Getuid(), to, b[:n])
	if os.Getenv(helperEnv+"_STAY") != "" {
		select {}
	}
	return nil
}

// tunnelCommand runs helper in the cgroup.
func (l *lab) tunnelCommand(cgroup, what string, files ...*os.File) *exec.Cmd {
	l.t.Helper()
	dir, err := os.Open(cgroup)
	must(l.t, err)
	l.t.Cleanup(func() { dir.Close() })
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{helperEnv + "=" + what}
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: 65534, Gid: 65534},
		UseCgroupFD: true, CgroupFD: int(dir.Fd()),
	}
	cmd.Stderr = os.Stderr
	return cmd
}

// startTunnel starts a tunnel that is to deliver to port 80 of the pod, and hands it a redirected connection.
func (l *lab) startTunnel(cgroup string, client netip.AddrPort, environment ...string) (*exec.Cmd, *bytes.Buffer) {
	l.t.Helper()
	v4, _ := l.outbound()
	_, err := l.dial(l.pod, netip.AddrPort{}, port(remote4, 80))
	must(l.t, err)
	conn, err := accept(l.t, v4).File()
	must(l.t, err)
	fd := l.socket(l.pod, unix.AF_INET)
	must(l.t, l.d.Exempt(fd))
	ready := os.NewFile(uintptr(fd), "ready")
	defer conn.Close()
	defer ready.Close()
	cmd, out := l.tunnelCommand(cgroup, client.String(), conn, ready), new(bytes.Buffer)
	cmd.Stdout, cmd.Env = out, append(cmd.Env, environment...)
	must(l.t, cmd.Start())
	l.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd, out
}

// Its cgroup is of no matter, not even whether it is below the agent's hooks: what counts is where the agent made the
// sockets.
func TestTunnelNeedsNoCapabilityAndNoBPF(t *testing.T) {
	root, err := cgroup2()
	must(t, err)
	outside, err := os.MkdirTemp(root, "culvert-datapath-test-outside-")
	must(t, err)
	removeCgroup(t, outside)
	for _, cgroup := range []string{os.Getenv(cgroupEnv), makeCgroup(t, "tunnel"), outside} {
		l := newLab(t, modes(policy.Strict, nil))
		l.serve(l.pod, port(pod4, 80))
		client := port(client4, 40001)
		cmd, out := l.startTunnel(cgroup, client)
		if err := cmd.Wait(); err != nil {
			t.Errorf("tunnel in %s: %v: %s", cgroup, err, out)
			continue
		}
		want := fmt.Sprintf("CapPrm:%016x CapEff:%016x Seccomp:2 uid 65534, wanted %s, application sees %s\n",
			0, 0, port(remote4, 80), client)
		if out.String() != want {
			t.Errorf("tunnel in %s says %q, want %q", cgroup, out, want)
		}
		l.noDeliveries()
	}
}

// The test above proves nothing unless a call is noticed.
func TestCallOfBPFKills(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	out, err := l.tunnelCommand(os.Getenv(cgroupEnv), callBPF).Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGSYS {
		t.Errorf("bpf(2): %v: %s", err, out)
	}
}

func TestKilledTunnelLeavesNoDelivery(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	ln := l.listen(l.pod, port(pod4, 80))
	cmd, _ := l.startTunnel(os.Getenv(cgroupEnv), port(client4, 40001), helperEnv+"_STAY=1")
	app := accept(t, ln)
	if n := l.deliveries(); n != 2 {
		t.Errorf("%d entries of the delivery, want 2", n)
	}
	time.Sleep(50 * time.Millisecond)
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	app.SetReadDeadline(time.Now().Add(wait))
	if _, err := app.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the application's end: %v", err)
	}
	app.Close()
	l.noDeliveries()
}
