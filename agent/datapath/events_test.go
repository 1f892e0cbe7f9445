package datapath

import (
	"maps"
	"net"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/agent/datapath/flows"
	"github.com/culvert-mesh/culvert/bpf"
	"github.com/culvert-mesh/culvert/policy"
)

// connections are those that were counted, without what there was none of.
func (l *lab) connections() map[ConnectionKind]uint64 {
	l.t.Helper()
	all, err := l.d.Connections()
	must(l.t, err)
	maps.DeleteFunc(all, func(_ ConnectionKind, n uint64) bool { return n == 0 })
	return all
}

func (l *lab) wantConnections(want map[ConnectionKind]uint64) {
	l.t.Helper()
	var got map[ConnectionKind]uint64
	eventually(l.t, "the connections are counted", func() bool {
		got = l.connections()
		return maps.Equal(got, want)
	})
	if !maps.Equal(got, want) {
		l.t.Errorf("counted %v, want %v", got, want)
	}
}

// deliverSameNode delivers as the tunnel does for a client that is a pod of the same node.
func (l *lab) deliverSameNode(client netip.AddrPort, app uint16) {
	l.t.Helper()
	own := pod6
	family := unix.AF_INET6
	if client.Addr().Is4() {
		own, family = pod4, unix.AF_INET
	}
	fd := l.socket(l.pod, family)
	defer unix.Close(fd)
	must(l.t, l.d.Exempt(fd))
	must(l.t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, 1))
	must(l.t, flows.Flows{}.Deliver(fd, port(own, app)))
	must(l.t, unix.Connect(fd, sockaddr(client)))
	_, err := unix.Read(fd, make([]byte, 100))
	must(l.t, err)
}

func TestConnectionsAreCountedByModeAndOutcome(t *testing.T) {
	l, kubelet, _ := newKubelet(t, modes(policy.Strict, nil))
	for _, a := range []netip.Addr{pod4, pod6} {
		l.serve(l.pod, port(a, 8080))
	}
	want := map[ConnectionKind]uint64{}
	for _, m := range []policy.Mode{policy.Strict, policy.Permissive, policy.Disable, policy.Unset} {
		if m != policy.Unset {
			must(t, l.d.SetPolicy(l.w.Cookie, modes(m, nil)))
		} else {
			must(t, l.d.maps.Modes.Delete(modeKey(l.w.Cookie, 0)))
		}
		for _, a := range []struct{ pod, client netip.Addr }{{pod4, client4}, {pod6, client6}} {
			to := port(a.pod, 8080)
			c, err := l.deliver(port(a.client, 40001), 8080)
			must(t, err)
			greeting(t, c)
			c.Close()
			l.deliverSameNode(port(a.client, 40002), 8080)
			kubelet.passes("close", to)
			l.noDeliveries()
			l.noProbes()
			want[ConnectionKind{m, "mtls"}]++
			want[ConnectionKind{m, "same_node"}]++
			want[ConnectionKind{m, "probe_exempted"}]++
			if m == policy.Permissive || m == policy.Disable {
				l.passes(to)
				want[ConnectionKind{m, "plaintext_accepted"}]++
			} else {
				l.refused(to)
				want[ConnectionKind{m, "plaintext_refused"}]++
			}
		}
		l.wantConnections(want)
	}
}

func TestConnectionsGoByThePortsOwnMode(t *testing.T) {
	l := newLab(t, modes(policy.Strict, map[uint16]policy.Mode{8080: policy.Permissive}))
	must(t, inNetns(l.pod, func() error {
		var lc net.ListenConfig
		lc.SetMultipathTCP(true) // which is two sockets for one connection
		ln, err := lc.Listen(t.Context(), "tcp4", port(pod4, 8080).String())
		if err == nil {
			t.Cleanup(func() { ln.Close() })
		}
		return err
	}))
	_, err := l.dial(l.client, netip.AddrPort{}, port(pod4, 8080))
	must(t, err)
	l.refused(port(pod4, 9090))
	l.wantConnections(map[ConnectionKind]uint64{{policy.Permissive, "plaintext_accepted"}: 1, {policy.Strict, "plaintext_refused"}: 1})
}

func TestConnectionsThatNoModeAppliesTo(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	for _, a := range []struct{ pod, client, remote netip.Addr }{{pod4, client4, remote4}, {pod6, client6, remote6}} {
		l.serve(l.client, port(a.client, 8080))
		c, err := l.dial(l.pod, netip.AddrPort{}, port(a.client, 8080)) // not the mesh's
		must(t, err)
		greeting(t, c)
		if _, err := l.dial(l.pod, netip.AddrPort{}, port(a.remote, 80)); err == nil {
			t.Errorf("%s is reached without a listener", a.remote)
		}
		l.refused(port(a.pod, 15008))
	}
	want := map[ConnectionKind]uint64{{policy.Unset, "pass_through"}: 2, {policy.Unset, "no_listener"}: 4}
	l.wantConnections(want)

	// What is not counted: what the tunnels have between them, the pod with itself, what the tunnel carries away, its sockets.
	hbone := l.serve(l.pod, port(pod4, 0))
	must(t, l.d.SetListener(l.w.Cookie, HBONEIPv4, hbone))
	l.passes(port(pod4, 15008))
	v4, _ := l.outbound()
	_, err := l.dial(l.pod, netip.AddrPort{}, port(remote4, 80))
	must(t, err)
	accept(t, v4)
	for _, own := range []netip.Addr{pod4, pod6, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()} {
		l.serve(l.pod, port(own, 9090))
		c, err := l.dial(l.pod, netip.AddrPort{}, port(own, 9090))
		must(t, err)
		greeting(t, c)
	}
	fd := l.socket(l.pod, unix.AF_INET)
	defer unix.Close(fd)
	must(t, l.d.Exempt(fd))
	must(t, unix.Connect(fd, sockaddr(port(client4, 8080))))
	l.wantConnections(want)
}

func TestCountsGoOnWithoutAgentAndTunnel(t *testing.T) {
	l := newLab(t, modes(policy.Strict, map[uint16]policy.Mode{9090: policy.Permissive}))
	l.serve(l.pod, port(pod4, 80))
	l.serve(l.pod, port(pod4, 9090))
	l.passes(port(pod4, 9090))
	l.refused(port(pod4, 80))
	cmd, _ := l.startTunnel(os.Getenv(cgroupEnv), port(client4, 40001), helperEnv+"_STAY=1")
	want := map[ConnectionKind]uint64{
		{policy.Permissive, "plaintext_accepted"}: 1, {policy.Strict, "plaintext_refused"}: 1, {policy.Strict, "mtls"}: 1,
	}
	l.wantConnections(want)
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	l.noDeliveries()

	must(t, l.d.Close())
	l.passes(port(pod4, 9090)) // while there is no agent
	l.refused(port(pod4, 80))
	l.open()
	must(t, l.d.Attach(l.w))
	want[ConnectionKind{policy.Permissive, "plaintext_accepted"}]++
	want[ConnectionKind{policy.Strict, "plaintext_refused"}]++
	l.wantConnections(want)

	l.passes(port(pod4, 9090))
	l.startTunnel(os.Getenv(cgroupEnv), port(client4, 40002), helperEnv+"_STAY=1")
	want[ConnectionKind{policy.Permissive, "plaintext_accepted"}]++
	want[ConnectionKind{policy.Strict, "mtls"}]++
	l.wantConnections(want)
}

// Older programs may write to the map of newer ones, and the other way round.
func TestEveryCountOfConnectionsHasAPlaceOfItsOwn(t *testing.T) {
	inbound, modeless := outcomeNames()
	if len(inbound)+len(modeless) != int(bpf.MapsOutcomeOUTCOME_MAX) {
		t.Errorf("%d outcomes have a name, want %d", len(inbound)+len(modeless), bpf.MapsOutcomeOUTCOME_MAX)
	}
	if bpf.MapsCounterCOUNTER_MAX > bpf.MapsCounterCOUNTER_CONNECTIONS {
		t.Errorf("%d events reach into the counts of connections", bpf.MapsCounterCOUNTER_MAX)
	}
	if bpf.MapsOutcomeOUTCOME_MAX > bpf.MapsOutcomeOUTCOME_ROOM {
		t.Errorf("%d outcomes have no room", bpf.MapsOutcomeOUTCOME_MAX)
	}
	// The last mode's last outcome.
	last := bpf.MapsCounterCOUNTER_CONNECTIONS + bpf.MapsCounter(bpf.MapsModeMODE_STRICT)*bpf.MapsCounter(bpf.MapsOutcomeOUTCOME_ROOM) +
		bpf.MapsCounter(bpf.MapsOutcomeOUTCOME_MAX)
	if last > bpf.MapsCounterCOUNTER_ROOM {
		t.Errorf("%d counters do not fit into the map", last)
	}
}
