package datapath

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/culvert-mesh/culvert/policy"
)

// foreignLookup hands every new connection of the pod to a listener, as any program of the pod's could.
func (l *lab) foreignLookup(ln *net.TCPListener) {
	l.t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	must(l.t, err)
	l.t.Cleanup(func() { m.Close() })
	raw, err := ln.SyscallConn()
	must(l.t, err)
	must(l.t, raw.Control(func(fd uintptr) { must(l.t, m.Put(uint32(0), uint64(fd))) }))
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SkLookup, AttachType: ebpf.AttachSkLookup, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.StoreImm(asm.RFP, -4, 0, asm.Word),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "pass"),
			asm.Mov.Reg(asm.R7, asm.R0),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Reg(asm.R2, asm.R7),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnSkAssign.Call(),
			asm.Mov.Reg(asm.R1, asm.R7),
			asm.FnSkRelease.Call(),
			asm.Mov.Imm(asm.R0, 1).WithSymbol("pass"),
			asm.Return(),
		},
	})
	must(l.t, err)
	l.t.Cleanup(func() { program.Close() })
	hook, err := link.AttachNetNs(int(l.pod.Fd()), program)
	must(l.t, err)
	l.t.Cleanup(func() { hook.Close() })
}

// Of all sk_lookup programs of a namespace, one that selects a socket wins over those that drop.
func TestForeignLookupDoesNotOpenStrictPorts(t *testing.T) {
	for _, order := range []string{"before ours", "after ours"} {
		t.Run(order, func(t *testing.T) {
			l, kubelet, _ := newKubelet(t, modes(policy.Permissive, nil))
			ln := l.serve(l.pod, port(pod4, 8080))
			l.serve(l.pod, port(pod4, 9090))
			if order == "before ours" {
				must(t, l.d.Detach(l.w.Cookie))
				must(t, l.d.SetPolicy(l.w.Cookie, modes(policy.Permissive, nil)))
				l.foreignLookup(ln)
				must(t, l.d.Attach(l.w))
			} else {
				l.foreignLookup(ln)
			}
			l.passes(port(pod4, 8080))
			must(t, l.d.SetPolicy(l.w.Cookie, modes(policy.Strict, map[uint16]policy.Mode{9090: policy.Permissive})))
			before := l.counter("strict_refused")
			err := inNetns(l.client, func() error {
				c, err := net.DialTimeout("tcp4", port(pod4, 8080).String(), 300*time.Millisecond)
				if err == nil {
					c.Close()
				}
				return err
			})
			if !isTimeout(err) {
				t.Errorf("connect to a STRICT port: %v, want no answer", err)
			}
			if l.counter("strict_refused") == before || l.counter("strict_answer_dropped") == 0 {
				t.Error("it is not our second line that held")
			}
			// What may come in does, also by way of the foreign program.
			kubelet.passes("close", port(pod4, 8080))
			l.passes(port(pod4, 9090))
			for _, a := range []netip.AddrPort{port(client4, 40001), port(remote4, 40002)} {
				c, err := l.deliver(a, 8080)
				must(t, err)
				if got := greeting(t, c); got != a.String() {
					t.Errorf("the application sees %s, want %s", got, a)
				}
			}
		})
	}
}

// Handshakes that are under way when a port turns STRICT end in a refusal, not in silence.
func TestTighteningDuringHandshakes(t *testing.T) {
	l := newLab(t, modes(policy.Permissive, nil))
	l.serve(l.pod, port(pod4, 8080))
	stop := make(chan struct{})
	through, refused, other, wg := l.hammer(port(pod4, 8080), stop)
	for range 20 {
		time.Sleep(10 * time.Millisecond)
		must(t, l.d.SetPolicy(l.w.Cookie, modes(policy.Strict, nil)))
		_, err := l.d.ClosePlaintext(l.pod, l.w.Cookie, func(uint16) bool { return true })
		must(t, err)
		time.Sleep(10 * time.Millisecond)
		must(t, l.d.SetPolicy(l.w.Cookie, modes(policy.Permissive, nil)))
	}
	close(stop)
	wg.Wait()
	t.Logf("%d through, %d refused, %d other, %d answers dropped", *through, *refused, *other, l.counter("strict_answer_dropped"))
	if *through == 0 || *refused == 0 {
		t.Errorf("%d through, %d refused", *through, *refused)
	}
}
