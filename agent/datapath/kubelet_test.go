package datapath

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/bpf"
	"github.com/culvert-mesh/culvert/policy"
)

// exempt does what the agent does, whose own network namespace is the node's; here that is the client's.
func (l *lab) exempt(cgroup string) error {
	return inNetns(l.client, func() error { return l.d.ExemptProbes(cgroup) })
}

// newKubelet makes a pod that is STRICT, on a node with a kubelet whose probes are exempt.
func newKubelet(t *testing.T, m policy.Modes) (*lab, *prober, string) {
	l := newLab(t, m)
	cgroup := makeCgroup(t, "kubelet")
	must(t, l.exempt(cgroup))
	return l, startProber(t, cgroup, l.client), cgroup
}

func (l *lab) probeEntries() map[bpf.MapsProbeKey]bpf.MapsProbeValue {
	l.t.Helper()
	found := map[bpf.MapsProbeKey]bpf.MapsProbeValue{}
	var (
		k bpf.MapsProbeKey
		v bpf.MapsProbeValue
	)
	it := l.d.maps.Probes.Iterate()
	for it.Next(&k, &v) {
		found[k] = v
	}
	must(l.t, it.Err())
	return found
}

func (l *lab) noProbes() {
	l.t.Helper()
	eventually(l.t, "no entries of probes", func() bool { return len(l.probeEntries()) == 0 })
}

func TestProbesOfTheKubeletAloneReachStrictPorts(t *testing.T) {
	l, kubelet, _ := newKubelet(t, modes(policy.Strict, nil))
	stranger := startProber(t, makeCgroup(t, "stranger"), l.client)
	l.serve(l.pod, port(pod4, 8080))
	l.serve(l.pod, port(pod6, 8080))
	l.serve(l.pod, port(netip.IPv6Unspecified(), 9090))
	accepted := uint64(0)
	for _, tt := range []struct {
		how string
		to  netip.AddrPort
	}{
		{"hold", port(pod4, 8080)}, {"hold", port(pod6, 8080)}, {"mapped", port(pod4, 8080)},
		{"hold", port(pod4, 9090)}, {"hold", port(pod6, 9090)}, {"mapped", port(pod4, 9090)},
	} {
		l.refused(tt.to)
		stranger.refused(netip.AddrPort{}, tt.to)
		from := kubelet.passes(tt.how, tt.to)
		accepted++
		v, ok := l.probeEntries()[probeKey(from, tt.to)]
		if !ok || v.State != uint32(bpf.MapsProbeStatePROBE_ESTABLISHED) {
			t.Errorf("%s: entry of the open probe from %s: %+v, %v", tt.to, from, v, ok)
		}
		l.refused(tt.to)
		stranger.refused(netip.AddrPort{}, tt.to)
		kubelet.try("release", netip.AddrPort{}, tt.to)
		l.noProbes()
		// The same address and port, by somebody else, once the probe is over.
		own := netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		stranger.refused(own, tt.to)
	}
	if got := l.counter("probe_accepted"); got != accepted {
		t.Errorf("%d probes were counted, want %d", got, accepted)
	}
	if counts, err := l.d.Plaintext(); err != nil || len(counts) != 0 || l.counter("plaintext_accepted") != 0 {
		t.Errorf("probes count as plaintext: %v, %v", counts, err)
	}
}

func TestPermissivePortsTakeTheKubeletAsBefore(t *testing.T) {
	l, kubelet, _ := newKubelet(t, modes(policy.Permissive, nil))
	l.serve(l.pod, port(pod4, 8080))
	kubelet.passes("close", port(pod4, 8080))
	l.passes(port(pod4, 8080))
	l.noProbes()
	if p, n := l.counter("probe_accepted"), l.counter("plaintext_accepted"); p != 1 || n != 1 {
		t.Errorf("%d probes and %d plaintext connections, want one each", p, n)
	}
}

func TestProbesThatFailLeaveNothing(t *testing.T) {
	l, kubelet, _ := newKubelet(t, modes(policy.Strict, nil))
	nobody := netip.MustParseAddr("10.99.0.77")
	for _, a := range []netip.Addr{pod4, pod6} {
		l.serve(l.pod, port(a, 8080))
	}
	unserved := port(pod4, 7)
	for i := range 250 {
		a := []netip.Addr{pod4, pod6}[i%2]
		kubelet.passes("close", port(a, 8080))
		kubelet.passes("reset", port(a, 8080))
		kubelet.refused(netip.AddrPort{}, unserved)
		if i%5 > 0 {
			kubelet.passes("reset", port(a, 8080))
		} else if got := kubelet.try("impatient", netip.AddrPort{}, port(nobody, 8080)); got != "timeout" {
			t.Errorf("a probe of nobody: %s", got)
		}
	}
	if got := kubelet.try("close", netip.AddrPort{}, port(netip.MustParseAddr("224.0.0.1"), 80)); !strings.Contains(got, "unreachable") {
		t.Errorf("a probe of a multicast address: %s", got)
	}
	l.noProbes()
	kubelet.passes("hold", port(pod4, 8080))
	if len(l.probeEntries()) != 1 {
		t.Errorf("entries: %v", l.probeEntries())
	}
	kubelet.stop()
	l.noProbes()
	if n := l.counter("probe_not_exempted"); n != 0 {
		t.Errorf("%d probes were not exempted", n)
	}
}

func TestKubeletCgroupInAnotherNamespaceIsNobody(t *testing.T) {
	l, _, cgroup := newKubelet(t, modes(policy.Strict, nil))
	other := newNetns(t)
	must(t, l.d.RefuseProbes())
	must(t, inNetns(other, func() error { return l.d.ExemptProbes(cgroup) })) // the agent is elsewhere
	l.serve(l.pod, port(pod4, 8080))
	startProber(t, cgroup, l.client).refused(netip.AddrPort{}, port(pod4, 8080))
	must(t, l.d.RefuseProbes())
	must(t, l.exempt(cgroup))
	startProber(t, cgroup, l.client).passes("close", port(pod4, 8080))
	// A pod's process, to another address than its own.
	l.serve(l.client, port(client4, 8080))
	startProber(t, cgroup, l.pod).passes("hold", port(client4, 8080))
	l.noProbes()
}

func TestProbesGoOnWhileAgentsChange(t *testing.T) {
	l, kubelet, cgroup := newKubelet(t, modes(policy.Strict, nil))
	l.serve(l.pod, port(pod4, 8080))
	stop, done := make(chan struct{}), make(chan string, 1)
	probes := 0
	go func() {
		for {
			select {
			case <-stop:
				done <- ""
				return
			default:
			}
			fmt.Fprintln(kubelet.in, "close", "-", port(pod4, 8080))
			kubelet.out.Scan()
			if _, err := netip.ParseAddrPort(kubelet.out.Text()); err != nil {
				done <- kubelet.out.Text()
				return
			}
			probes++
		}
	}()
	for range 5 {
		must(t, l.d.Close())
		time.Sleep(30 * time.Millisecond)
		l.open()
		must(t, l.d.Attach(l.w))
		must(t, l.exempt(cgroup))
		must(t, l.exempt(cgroup))
	}
	close(stop)
	if failed := <-done; failed != "" || probes == 0 {
		t.Errorf("after %d probes: %s", probes, failed)
	}
	t.Logf("%d probes", probes)
	l.noProbes()
	if n, want := l.attached(), len(nodeHooks())+3; n != want {
		t.Errorf("%d programs are attached to node and pod, want %d", n, want)
	}
}

func TestRestartedKubeletHasANewCgroup(t *testing.T) {
	l, kubelet, cgroup := newKubelet(t, modes(policy.Strict, nil))
	l.serve(l.pod, port(pod4, 8080))
	kubelet.passes("hold", port(pod4, 8080))
	kubelet.stop()
	eventually(t, "the cgroup is gone", func() bool { return os.Remove(cgroup) == nil })
	if err := l.exempt(cgroup); err == nil {
		t.Error("ExemptProbes without a cgroup succeeds")
	}
	must(t, os.Mkdir(cgroup, 0o755))
	again := startProber(t, cgroup, l.client)
	again.refused(netip.AddrPort{}, port(pod4, 8080))
	must(t, l.exempt(cgroup))
	again.passes("close", port(pod4, 8080))
	l.noProbes()
	must(t, l.d.RefuseProbes())
	must(t, l.d.RefuseProbes())
	again.refused(netip.AddrPort{}, port(pod4, 8080))
}

func TestTighteningClosesPlaintextAndNoProbes(t *testing.T) {
	l, kubelet, _ := newKubelet(t, modes(policy.Permissive, nil))
	l.serve(l.pod, port(pod4, 8080))
	l.serve(l.pod, port(netip.IPv6Unspecified(), 9090))
	plain := []interface{ Close() error }{l.passes(port(pod4, 8080)), l.passes(port(pod4, 9090)), l.passes(port(pod6, 9090))}
	kubelet.passes("hold", port(pod4, 8080))
	kubelet.passes("mapped", port(pod4, 9090))
	kubelet.passes("hold", port(pod6, 9090))
	must(t, l.d.SetPolicy(l.w.Cookie, modes(policy.Strict, nil)))
	n, err := l.d.ClosePlaintext(l.pod, l.w.Cookie, func(uint16) bool { return true })
	must(t, err)
	if n != len(plain) {
		t.Errorf("closed %d, want the %d plaintext connections", n, len(plain))
	}
	if n := len(l.probeEntries()); n != 3 {
		t.Errorf("%d probes are open, want 3", n)
	}
	kubelet.passes("hold", port(pod4, 8080))
}

// A listener that answers with SYN cookies asks sk_lookup again for the last packet of the handshake.
func TestProbesPassWithSYNCookies(t *testing.T) {
	l, kubelet, _ := newKubelet(t, modes(policy.Strict, nil))
	must(t, inNetns(l.pod, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/tcp_syncookies", []byte("2"), 0)
	}))
	l.serve(l.pod, port(pod4, 8080))
	for range 20 {
		kubelet.passes("close", port(pod4, 8080))
	}
	l.refused(port(pod4, 8080))
}

func TestForgedProbes(t *testing.T) {
	l, _, _ := newKubelet(t, modes(policy.Strict, nil))
	for _, a := range []struct{ pod, client netip.Addr }{{pod4, client4}, {pod6, client6}} {
		l.serve(l.pod, port(a.pod, 8080))
		l.serve(l.pod, port(a.pod, 9090))
		// A probe whose SYN is under way for long: none of the kernel's, which would be answered at once.
		k := probeKey(port(a.client, 40001), port(a.pod, 8080))
		must(t, l.d.maps.Probes.Put(k, probeEntry(t, bpf.MapsProbeStatePROBE_SYN_SENT, 0)))
		r := l.wire()
		elsewhere := a.client.Next().Next().Next()
		for _, tt := range []struct {
			name     string
			from, to netip.AddrPort
		}{
			{"another source port", port(a.client, 40002), port(a.pod, 8080)},
			{"another address", port(elsewhere, 40001), port(a.pod, 8080)},
			{"another port of the pod", port(a.client, 40001), port(a.pod, 9090)},
		} {
			before := l.counter("strict_refused")
			r.send(tt.from, tt.to, flagSYN, 1000, 0, "")
			eventually(t, tt.name+" is refused", func() bool { return l.counter("strict_refused") == before+1 })
		}
		// The very tuple: the pod answers, and the node resets what none of its sockets has asked for.
		r.send(port(a.client, 40001), port(a.pod, 8080), flagSYN, 1000, 0, "")
		if _, _, _, ok := r.recv(port(a.pod, 8080), port(a.client, 40001), flagSYNACK); !ok {
			t.Error("no answer to the tuple itself")
		}
		time.Sleep(20 * time.Millisecond)
		r.send(port(a.client, 40001), port(a.pod, 8080), 0x18, 1001, 1, "forged")
		if n := l.counter("probe_accepted"); n != 0 {
			t.Errorf("%d forged probes were accepted", n)
		}
		must(t, l.d.maps.Probes.Delete(k))
	}
}

func probeEntry(t *testing.T, state bpf.MapsProbeState, age time.Duration) bpf.MapsProbeValue {
	t.Helper()
	var now unix.Timespec
	must(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	return bpf.MapsProbeValue{Since: uint64(now.Nano() - age.Nanoseconds()), State: uint32(state)}
}

// What was left behind counts as long as a SYN may be under way, and no longer.
func TestOldEntriesOfProbesCountForNothing(t *testing.T) {
	l, _, _ := newKubelet(t, modes(policy.Strict, nil))
	l.serve(l.pod, port(pod4, 8080))
	k := probeKey(port(client4, 40002), port(pod4, 8080))
	for _, tt := range []struct {
		state  bpf.MapsProbeState
		age    time.Duration
		passes bool
	}{
		{bpf.MapsProbeStatePROBE_SYN_SENT, 100 * time.Second, true},
		{bpf.MapsProbeStatePROBE_SYN_SENT, 200 * time.Second, false},
		{bpf.MapsProbeStatePROBE_ESTABLISHED, 2 * time.Second, false},
	} {
		must(t, l.d.maps.Probes.Put(k, probeEntry(t, tt.state, tt.age)))
		c, err := l.dial(l.client, port(client4, 40002), port(pod4, 8080))
		if (err == nil) != tt.passes {
			t.Errorf("state %d, %s old: %v", tt.state, tt.age, err)
		}
		if err == nil {
			must(t, c.SetLinger(0))
			must(t, c.Close())
		}
	}
}

func TestFullMapOfProbesRefuses(t *testing.T) {
	l, kubelet, _ := newKubelet(t, modes(policy.Strict, nil))
	l.serve(l.pod, port(pod4, 8080))
	k := probeKey(port(client4, 1), port(pod4, 1))
	for l.d.maps.Probes.Put(k, bpf.MapsProbeValue{}) == nil {
		k.Source[0]++
	}
	kubelet.refused(netip.AddrPort{}, port(pod4, 8080))
	if n := l.counter("probe_not_exempted"); n != 1 {
		t.Errorf("%d probes were not exempted, want 1", n)
	}
	// All of these are without a socket.
	must(t, inNetns(l.client, func() error { return l.d.forgetLostProbes(manyProbes) }))
	l.noProbes()
	kubelet.passes("hold", port(pod4, 8080))
	must(t, inNetns(l.client, func() error { return l.d.forgetLostProbes(0) }))
	if n := len(l.probeEntries()); n != 1 {
		t.Errorf("%d entries, want the open probe's", n)
	}
}

func TestCgroupThatIsNotTheKubeletsAlone(t *testing.T) {
	l, kubelet, cgroup := newKubelet(t, modes(policy.Strict, nil))
	l.serve(l.pod, port(pod4, 8080))
	for _, dir := range []string{filepath.Dir(os.Getenv(cgroupEnv)), os.Getenv(cgroupEnv), t.TempDir(), "/nowhere"} {
		if err := l.exempt(dir); err == nil {
			t.Errorf("%s is taken for the kubelet's", dir)
		}
	}
	must(t, l.exempt(cgroup))
	kubelet.passes("close", port(pod4, 8080))
	below := makeCgroup(t, "kubelet/container")
	if err := l.exempt(cgroup); err == nil || !strings.Contains(err.Error(), "container") {
		t.Errorf("with a cgroup below: %v", err)
	}
	kubelet.refused(netip.AddrPort{}, port(pod4, 8080))
	must(t, os.Remove(below))
	must(t, l.exempt(cgroup))
	kubelet.passes("close", port(pod4, 8080))
}

func TestUninstallTakesTheProbesToo(t *testing.T) {
	l, _, cgroup := newKubelet(t, modes(policy.Strict, nil))
	must(t, l.d.Close())
	must(t, Uninstall(l.opts))
	if n := attachedTo(t, cgroup); n != 0 {
		t.Errorf("%d programs hang on the kubelet's cgroup", n)
	}
}

func attachedTo(t *testing.T, cgroup string) int {
	t.Helper()
	dir, err := os.Open(cgroup)
	must(t, err)
	defer dir.Close()
	r, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: ebpf.AttachCGroupSockOps})
	must(t, err)
	return len(r.Programs)
}
