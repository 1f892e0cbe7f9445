package datapath

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/bpf"
	"github.com/culvert-mesh/culvert/policy"
)

func TestProbe(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root: makes network namespaces and attaches BPF programs")
	}
	for _, f := range Probe() {
		if f.Err != nil {
			t.Errorf("%s: %v", f.Name, f.Err)
		}
	}
}

func TestOpenNamesWhatIsWrong(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root: makes network namespaces and attaches BPF programs")
	}
	if _, err := Open(Options{BPFFS: t.TempDir(), Cgroup: os.Getenv(cgroupEnv)}); err == nil || !strings.Contains(err.Error(), "not a bpf file system") {
		t.Errorf("Open on an ordinary folder: %v", err)
	}
	if _, err := Open(Options{BPFFS: mountBPFFS(t), Cgroup: "/"}); err == nil || !strings.Contains(err.Error(), "not a cgroup2 file system") {
		t.Errorf("Open with a wrong cgroup: %v", err)
	}
}

func TestAttachNeedsPolicyAndTheRightNamespace(t *testing.T) {
	l := newLab(t, modes(policy.Permissive, nil))
	cookie, err := NetnsCookie(l.client)
	must(t, err)
	w := Workload{Cookie: cookie, Netns: l.client, IPv4: client4}
	if err := l.d.Attach(w); err == nil {
		t.Error("Attach without SetPolicy succeeds")
	}
	if got, err := l.d.Workloads(); err != nil || !slices.Equal(got, []uint64{l.w.Cookie}) {
		t.Errorf("Workloads: %v, %v", got, err)
	}
	must(t, l.d.SetPolicy(cookie, modes(policy.Permissive, nil)))
	w.Netns = l.pod
	if err := l.d.Attach(w); err == nil {
		t.Error("Attach to another pod's namespace succeeds")
	}
	// What was begun and never finished is found too, so that it can be detached.
	if got, err := l.d.Workloads(); err != nil || len(got) != 2 || !slices.Contains(got, cookie) {
		t.Errorf("Workloads: %v, %v", got, err)
	}
}

// hammer tries plaintext until stop is closed, and returns how often it got through and how often it was refused.
func (l *lab) hammer(to netip.AddrPort, stop chan struct{}) (through, refused, other *int, wg *sync.WaitGroup) {
	through, refused, other, wg = new(int), new(int), new(int), new(sync.WaitGroup)
	wg.Go(func() {
		_ = inNetns(l.client, func() error {
			d := net.Dialer{Timeout: wait}
			for {
				select {
				case <-stop:
					return nil
				default:
				}
				c, err := d.Dial(network(to.Addr()), to.String())
				switch {
				case err == nil:
					*through++
					c.(*net.TCPConn).SetLinger(0)
					c.Close()
				case errors.Is(err, unix.ECONNREFUSED):
					*refused++
				default:
					*other++
				}
			}
		})
	})
	return through, refused, other, wg
}

func TestAdoptionLeavesNoGap(t *testing.T) {
	want := modes(policy.Permissive, map[uint16]policy.Mode{8080: policy.Strict})
	l := newLab(t, want)
	l.serve(l.pod, port(pod4, 8080))
	l.serve(l.pod, port(pod4, 9090))
	held, err := l.deliver(port(client4, 40001), 8080)
	must(t, err)
	greeting(t, held)
	stop := make(chan struct{})
	through, refused, other, wg := l.hammer(port(pod4, 8080), stop)
	passed, shut, lost, wg2 := l.hammer(port(pod4, 9090), stop)
	for range 5 {
		must(t, l.d.Close())
		time.Sleep(50 * time.Millisecond)
		l.open()
		if got, ok, err := l.d.Policy(l.w.Cookie); err != nil || !ok || !got.Equal(want) {
			t.Errorf("adopted policy: %+v, %v, %v", got, ok, err)
		}
		must(t, l.d.Attach(l.w))
	}
	close(stop)
	wg.Wait()
	wg2.Wait()
	if *through != 0 || *refused == 0 || *other != 0 {
		t.Errorf("STRICT: %d through, %d refused, %d other", *through, *refused, *other)
	}
	if *passed == 0 || *shut != 0 || *lost != 0 {
		t.Errorf("PERMISSIVE: %d through, %d refused, %d other", *passed, *shut, *lost)
	}
	echo(t, held, "the delivery survived")
	t.Logf("STRICT: %d refused; PERMISSIVE: %d through", *refused, *passed)
}

func (l *lab) attached() int {
	l.t.Helper()
	n := 0
	it := new(link.Iterator)
	defer it.Close()
	for it.Next() {
		info, err := it.Link.Info()
		must(l.t, err)
		var st, cg unix.Stat_t
		must(l.t, unix.Fstat(int(l.pod.Fd()), &st))
		must(l.t, unix.Stat(l.opts.Cgroup, &cg))
		switch {
		case info.NetNs() != nil && uint64(info.NetNs().NetnsInode) == st.Ino,
			info.Cgroup() != nil && info.Cgroup().CgroupId == cg.Ino,
			info.TCX() != nil && l.isPodLink(info.ID):
			n++
		}
	}
	must(l.t, it.Err())
	return n
}

// isPodLink asks the pod's interface, because an interface's number alone says nothing.
func (l *lab) isPodLink(id link.ID) bool {
	found := false
	must(l.t, inNetns(l.pod, func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		for _, attach := range tcxAttachTypes() {
			r, err := link.QueryPrograms(link.QueryOptions{Target: ifi.Index, Attach: attach})
			if err != nil {
				return err
			}
			for _, p := range r.Programs {
				linkID, ok := p.LinkID()
				found = found || ok && linkID == id
			}
		}
		return nil
	}))
	return found
}

func TestDetachLeavesNothingOfThePod(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	l.serve(l.pod, port(pod4, 8080))
	l.outbound()
	l.refused(port(pod4, 8080))
	must(t, l.d.Detach(l.w.Cookie))
	must(t, l.d.Detach(l.w.Cookie))
	l.passes(port(pod4, 8080))
	if n := l.attached(); n != len(nodeHooks()) {
		t.Errorf("%d programs are attached, want the node's %d", n, len(nodeHooks()))
	}
	if got, err := l.d.Workloads(); err != nil || len(got) != 0 {
		t.Errorf("Workloads: %v, %v", got, err)
	}
	if _, ok, _ := l.d.Policy(l.w.Cookie); ok {
		t.Error("the policy is still there")
	}
	if _, err := os.Stat(l.d.layout.pod(l.w.Cookie)); !os.IsNotExist(err) {
		t.Errorf("pins of the pod: %v", err)
	}
}

func TestDetachWithoutNamespace(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	must(t, l.pod.Close())
	time.Sleep(100 * time.Millisecond)
	must(t, l.d.Detach(l.w.Cookie))
}

func TestUninstallLeavesNothing(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	l.serve(l.pod, port(pod4, 8080))
	must(t, os.Mkdir(l.opts.BPFFS+"/neighbour", 0o700))
	if n, want := l.attached(), len(nodeHooks())+3; n != want {
		t.Errorf("%d programs are attached, want %d", n, want)
	}
	must(t, l.d.Close())
	must(t, Uninstall(l.opts))
	if n := l.attached(); n != 0 {
		t.Errorf("%d programs are still attached", n)
	}
	if _, err := os.Stat(l.opts.BPFFS + "/neighbour"); err != nil {
		t.Errorf("a pin that is not ours: %v", err)
	}
	if _, err := os.Stat(l.d.layout.root); !os.IsNotExist(err) {
		t.Errorf("left in the BPF file system: %v", err)
	}
	l.passes(port(pod4, 8080))
	must(t, Uninstall(l.opts))
}

func TestEveryCounterHasAName(t *testing.T) {
	names := counterNames()
	for i := range bpf.MapsCounterCOUNTER_MAX {
		if names[i] == "" {
			t.Errorf("counter %d has no name", i)
		}
	}
}
