package datapath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/agent/datapath/flows"
	"github.com/culvert-mesh/culvert/bpf"
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

// helper is the tunnel: another process, nobody's, without a capability. It is handed the two maps, an accepted
// connection and a socket to deliver with, as descriptors 3 to 7 (the first
// map twice).
func helper(client string) int {
	if err := tunnel(netip.MustParseAddrPort(client)); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func tunnel(client netip.AddrPort) error {
	f, err := flows.New(os.NewFile(3, "accepted"), os.NewFile(4, "delivery"))
	if err != nil {
		return err
	}
	c, err := net.FileConn(os.NewFile(5, "connection"))
	if err != nil {
		return err
	}
	to, err := f.OriginalDestination(c.(*net.TCPConn))
	if err != nil {
		return err
	}
	accepted, err := ebpf.NewMapFromFD(7)
	if err != nil {
		return err
	}
	if err := accepted.Update(int32(6), bpf.MapsEndpoint{}, ebpf.UpdateAny); err == nil {
		return errors.New("the tunnel can write original destinations")
	}
	if err := f.Deliver(6, 8080); err != nil {
		return err
	}
	if err := unix.Connect(6, sockaddr(client)); err != nil {
		return fmt.Errorf("deliver: %w", err)
	}
	b := make([]byte, 100)
	n, err := unix.Read(6, b)
	if err != nil {
		return err
	}
	fmt.Printf("uid %d, wanted %s, application sees %s", os.Getuid(), to, b[:n])
	if os.Getenv(helperEnv+"_STAY") != "" {
		select {}
	}
	return nil
}

func (l *lab) tunnelProcess(client netip.AddrPort, stay bool) *exec.Cmd {
	l.t.Helper()
	accepted, delivery, err := l.d.TunnelMaps()
	must(l.t, err)
	v4, _ := l.outbound()
	_, err = l.dial(l.pod, netip.AddrPort{}, port(remote4, 80))
	must(l.t, err)
	conn, err := accept(l.t, v4).File()
	must(l.t, err)
	fd := l.socket(l.pod, unix.AF_INET)
	must(l.t, l.d.Exempt(fd))
	must(l.t, unix.Bind(fd, sockaddr(port(pod4, 0))))
	ready := os.NewFile(uintptr(fd), "ready")
	l.t.Cleanup(func() {
		for _, f := range []*os.File{accepted, delivery, conn} {
			f.Close()
		}
	})
	defer ready.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{helperEnv + "=" + client.String()}
	if stay {
		cmd.Env = append(cmd.Env, helperEnv+"_STAY=1")
	}
	cmd.ExtraFiles = []*os.File{accepted, delivery, conn, ready, accepted}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: 65534, Gid: 65534},
	}
	cmd.Stderr = os.Stderr
	if !stay {
		out, err := cmd.Output()
		if err != nil {
			l.t.Fatalf("tunnel: %v: %s", err, out)
		}
		want := fmt.Sprintf("uid 65534, wanted %s, application sees %s\n", port(remote4, 80), client)
		if string(out) != want {
			l.t.Errorf("tunnel says %q, want %q", out, want)
		}
		return cmd
	}
	must(l.t, cmd.Start())
	l.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

func TestTunnelNeedsNoCapability(t *testing.T) {
	if b, err := os.ReadFile("/proc/sys/kernel/unprivileged_bpf_disabled"); err == nil {
		t.Logf("unprivileged_bpf_disabled is %s", strconv.Quote(string(b)))
	}
	l := newLab(t, modes(policy.Strict, nil))
	l.serve(l.pod, port(pod4, 8080))
	l.tunnelProcess(port(client4, 40001), false)
	l.noDeliveries()
}

func TestKilledTunnelLeavesNoDelivery(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	ln := l.listen(l.pod, port(pod4, 8080))
	cmd := l.tunnelProcess(port(client4, 40001), true)
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
