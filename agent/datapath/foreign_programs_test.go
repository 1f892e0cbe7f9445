package datapath

import (
	"net"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/culvert-mesh/culvert/policy"
)

func TestForeignProgramsAreFoundAndOursAreNot(t *testing.T) {
	l := newLab(t, modes(policy.Permissive, nil))
	none, err := l.d.ForeignOnNode()
	must(t, err)
	if len(none) != 0 {
		t.Errorf("on the node's hooks: %v, want none", none)
	}
	none, err = l.d.ForeignOnPod(l.w)
	must(t, err)
	if len(none) != 0 {
		t.Errorf("on the pod's hooks: %v, want none", none)
	}

	l.foreignLookup(l.listen(l.pod, port(pod4, 7777)))
	connect, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "somebody", Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	must(t, err)
	defer connect.Close()
	hook, err := link.AttachCgroup(link.CgroupOptions{Path: os.Getenv(cgroupEnv), Attach: ebpf.AttachCGroupInet4Connect, Program: connect})
	must(t, err)
	defer hook.Close()
	tc, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "other_tc", Type: ebpf.SchedCLS, AttachType: ebpf.AttachTCXEgress, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
	must(t, err)
	defer tc.Close()
	must(t, inNetns(l.pod, func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		tcx, err := link.AttachTCX(link.TCXOptions{Interface: ifi.Index, Program: tc, Attach: ebpf.AttachTCXEgress})
		if err == nil {
			t.Cleanup(func() { tcx.Close() })
		}
		return err
	}))

	node, err := l.d.ForeignOnNode()
	must(t, err)
	if len(node) != 1 || node[0].Name != "somebody" || node[0].Hook != ebpf.AttachCGroupInet4Connect.String() || node[0].ID == 0 {
		t.Errorf("on the node's hooks: %+v", node)
	}
	pod, err := l.d.ForeignOnPod(l.w)
	must(t, err)
	if len(pod) != 2 || pod[0].Hook != ebpf.AttachSkLookup.String() || pod[1].Name != "other_tc" {
		t.Errorf("on the pod's hooks: %+v", pod)
	}
}
