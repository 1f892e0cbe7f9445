package datapath

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/culvert-mesh/culvert/bpf"
	"github.com/culvert-mesh/culvert/policy"
)

func modes(d policy.Mode, ports map[uint16]policy.Mode) policy.Modes {
	return policy.Modes{Default: d, Ports: ports}
}

func TestModesDecideAtTheSYN(t *testing.T) {
	l := newLab(t, modes(policy.Permissive, nil))
	for _, a := range []netip.Addr{pod4, pod6} {
		l.serve(l.pod, port(a, 8080))
		l.serve(l.pod, port(a, 9090))
	}
	tests := []struct {
		name       string
		modes      policy.Modes
		open, shut []uint16
	}{
		{"permissive", modes(policy.Permissive, nil), []uint16{8080, 9090}, nil},
		{"strict", modes(policy.Strict, nil), nil, []uint16{8080, 9090, 7}},
		{"disable", modes(policy.Disable, nil), []uint16{8080, 9090}, nil},
		{"port permissive", modes(policy.Strict, map[uint16]policy.Mode{9090: policy.Permissive}), []uint16{9090}, []uint16{8080}},
		{"port strict", modes(policy.Permissive, map[uint16]policy.Mode{9090: policy.Strict}), []uint16{8080}, []uint16{9090}},
		{"port disable", modes(policy.Strict, map[uint16]policy.Mode{8080: policy.Disable}), []uint16{8080}, []uint16{9090}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			must(t, l.d.SetPolicy(l.w.Cookie, tt.modes))
			got, ok, err := l.d.Policy(l.w.Cookie)
			if err != nil || !ok || !got.Equal(tt.modes) {
				t.Errorf("Policy: %+v, %v, %v", got, ok, err)
			}
			for _, a := range []netip.Addr{pod4, pod6} {
				for _, p := range tt.open {
					l.passes(port(a, p))
				}
				for _, p := range tt.shut {
					l.refused(port(a, p))
				}
			}
		})
	}
}

func TestMissingModesAreStrict(t *testing.T) {
	l := newLab(t, modes(policy.Permissive, nil))
	l.serve(l.pod, port(pod4, 8080))
	l.passes(port(pod4, 8080))
	must(t, l.d.maps.Modes.Delete(modeKey(l.w.Cookie, 0)))
	l.refused(port(pod4, 8080))
	c, err := l.d.Counters()
	must(t, err)
	if c["strict_refused_no_mode"] != 1 {
		t.Errorf("strict_refused_no_mode is %d, want 1", c["strict_refused_no_mode"])
	}
}

func TestStrictLeavesThePodItselfAlone(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	for _, a := range []netip.Addr{pod4, pod6, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()} {
		l.serve(l.pod, port(a, 8080))
		c, err := l.dial(l.pod, netip.AddrPort{}, port(a, 8080))
		must(t, err)
		greeting(t, c)
	}
}

func TestFullMapFailsClosed(t *testing.T) {
	l := newLab(t, modes(policy.Permissive, map[uint16]policy.Mode{9090: policy.Permissive}))
	l.serve(l.pod, port(pod4, 8080))
	l.serve(l.pod, port(pod4, 9090))
	var err error
	for i := uint64(1); err == nil; i++ {
		err = l.d.maps.Modes.Update(bpf.MapsModeKey{Cookie: 1 << 60, Port: uint16(i), Pad: [3]uint16{uint16(i >> 16)}}, uint32(1), ebpf.UpdateAny)
	}
	l.passes(port(pod4, 8080))
	next := modes(policy.Strict, map[uint16]policy.Mode{8080: policy.Permissive, 9090: policy.Permissive, 1: policy.Disable})
	if err := l.d.SetPolicy(l.w.Cookie, next); err == nil {
		t.Error("SetPolicy says nothing of the full map")
	}
	l.refused(port(pod4, 8080))
	l.refused(port(pod4, 9090))
}

func TestRefusalsAreReported(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	ctx, cancel := context.WithCancel(t.Context())
	got, done := make(chan Refusal, 1000), make(chan error, 1)
	go func() { done <- l.d.Refusals(ctx, func(r Refusal) { got <- r }) }()
	for _, a := range []netip.Addr{pod4, pod6} {
		l.refused(port(a, 8080))
		r := <-got
		if r.Cookie != l.w.Cookie || r.Destination != port(a, 8080) || r.Source.Port() == 0 {
			t.Errorf("refusal of %s: %+v", a, r)
		}
	}
	for range 1000 {
		l.refused(port(pod4, 8080))
	}
	time.Sleep(50 * time.Millisecond)
	if n := len(got); n > 900 {
		t.Errorf("%d refusals reported at once, want fewer", n)
	}
	cancel()
	<-done
}

func TestHBONEListener(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	for _, tt := range []struct {
		slot ListenerSlot
		a    netip.Addr
	}{{HBONEIPv4, pod4}, {HBONEIPv6, pod6}} {
		l.refused(port(tt.a, 15008))
		ln := l.serve(l.pod, port(tt.a, 0))
		must(t, l.d.SetListener(l.w.Cookie, tt.slot, ln))
		l.passes(port(tt.a, 15008))
		ln.Close()
		l.refused(port(tt.a, 15008))
	}
}

func TestPlaintextIsCounted(t *testing.T) {
	l := newLab(t, modes(policy.Permissive, nil))
	l.serve(l.pod, port(pod4, 8080))
	l.passes(port(pod4, 8080))
	l.passes(port(pod4, 8080))
	counts, err := l.d.Plaintext()
	must(t, err)
	if len(counts) != 1 || counts[0].Count != 2 || counts[0].Peer != client4 || counts[0].Port != 8080 {
		t.Errorf("Plaintext: %+v", counts)
	}
}

func TestClosePlaintext(t *testing.T) {
	l := newLab(t, modes(policy.Permissive, nil))
	var closed, open []*net.TCPConn
	ports := map[uint16]bool{8080: true}
	for _, a := range []struct{ pod, client netip.Addr }{{pod4, client4}, {pod6, client6}} {
		l.serve(l.pod, port(a.pod, 9090))
		gone := l.serve(l.pod, port(a.pod, 8080))
		closed = append(closed, l.passes(port(a.pod, 8080)), l.passes(port(a.pod, 8080)))
		gone.Close() // no listener any more: known by its storage
		local, err := l.dial(l.pod, netip.AddrPort{}, port(a.pod, 9090))
		must(t, err)
		l.serve(l.client, port(a.client, 8080))
		outbound, err := l.dial(l.pod, netip.AddrPort{}, port(a.client, 8080))
		must(t, err)
		ports[outbound.LocalAddr().(*net.TCPAddr).AddrPort().Port()] = true
		open = append(open, local, outbound, l.passes(port(a.pod, 9090)))
		greeting(t, local)
		greeting(t, outbound)
	}
	must(t, l.d.SetPolicy(l.w.Cookie, modes(policy.Permissive, map[uint16]policy.Mode{8080: policy.Strict})))
	n, err := l.d.ClosePlaintext(l.pod, l.w.Cookie, func(p uint16) bool { return ports[p] })
	must(t, err)
	if n != len(closed) {
		t.Errorf("closed %d, want %d", n, len(closed))
	}
	for _, c := range closed {
		c.SetReadDeadline(time.Now().Add(wait))
		if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("%s is still open: %v", c.RemoteAddr(), err)
		}
	}
	for _, c := range open {
		echo(t, c, "still there")
	}
}

func TestClosePlaintextClosesHandshakes(t *testing.T) {
	l := newLab(t, modes(policy.Permissive, nil))
	l.serve(l.pod, port(pod4, 8080))
	l.spoofIPv4(netip.MustParseAddrPort("10.99.0.77:5555"), 8080, nil, 0) // nobody there, so it never ends
	eventually(t, "the handshake is closed", func() bool {
		n, err := l.d.ClosePlaintext(l.pod, l.w.Cookie, func(uint16) bool { return true })
		must(t, err)
		return n == 1
	})
}
