package datapath

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// userPort is the offset of user_port in struct bpf_sock_addr.
const userPort = 24

// Probe tries, one by one, what the datapath needs of the kernel. It needs root and changes nothing.
func Probe() []Feature {
	helper := func(t ebpf.ProgramType, h asm.BuiltinFunc) error { return features.HaveProgramHelper(t, h) }
	return []Feature{
		{"socket storage", features.HaveMapType(ebpf.SkStorage), "Linux 5.2: original destinations", false},
		{"ring buffer", features.HaveMapType(ebpf.RingBuf), "Linux 5.8: reports of refusals", false},
		{"longest-prefix maps", features.HaveMapType(ebpf.LPMTrie), "Linux 4.11: captured destinations", false},
		{"atomic instructions", features.HaveV3ISA(), "Linux 5.12: ends of deliveries", false},
		{"sk_lookup", features.HaveProgramType(ebpf.SkLookup), "Linux 5.9: modes of ports", false},
		{"netns cookie in connect hooks", helper(ebpf.CGroupSockAddr, asm.FnGetNetnsCookie), "Linux 5.7: whose connection", false},
		{"socket storage in connect hooks", helper(ebpf.CGroupSockAddr, asm.FnSkStorageGet), "Linux 5.8: original destinations", false},
		{"getsockname hooks", probeAddressHook(ebpf.AttachCgroupInet4GetSockname), "Linux 5.8: original destinations, told to the tunnel", false},
		{"bind hooks", probeAddressHook(ebpf.AttachCGroupInet4Bind), "Linux 4.17: deliveries that the tunnel asks for", false},
		{"netns cookie in sockops", helper(ebpf.SockOps, asm.FnGetNetnsCookie), "Linux 5.15: whose connection", false},
		{"tcx", probeTCX(), "Linux 6.6: deliveries with the client's address", false},
		{"error of a refused connect", helper(ebpf.CGroupSockAddr, asm.FnSetRetval), "Linux 5.18, optional: ECONNREFUSED instead of EPERM", true},
		{"closing sockets", probeDestroy(), "Linux 4.5 with CONFIG_INET_DIAG_DESTROY: open plaintext connections when a port turns STRICT", false},
	}
}

// probeAddressHook loads a program that changes the port of a socket's address. Kernels refuse unknown types of hooks.
func probeAddressHook(attach ebpf.AttachType) error {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, License: "GPL", AttachType: attach,
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R2, 0),
			asm.StoreMem(asm.R1, userPort, asm.R2, asm.Word),
			asm.Mov.Imm(asm.R0, 1),
			asm.Return(),
		},
	})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w: %w", ebpf.ErrNotSupported, err)
	}
	if err != nil {
		return err
	}
	return program.Close()
}

// probeTCX attaches a program that lets everything pass to the loopback of a namespace of its own.
func probeTCX() error {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL", AttachType: ebpf.AttachTCXIngress,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
	if err != nil {
		return err
	}
	defer program.Close()
	return inFreshNetns(func() error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: 1, Program: program, Attach: ebpf.AttachTCXIngress})
		if err != nil {
			return err
		}
		return l.Close()
	})
}

// probeDestroy destroys a socket that is not there, and looks which error says so.
func probeDestroy() error {
	return inFreshNetns(func() error {
		err := destroySocket(socketID{family: unix.AF_INET})
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	})
}

// explain adds to a failure which feature the kernel lacks, if it lacks one.
func explain(err error) error {
	if errors.Is(err, os.ErrPermission) && os.Geteuid() != 0 {
		return fmt.Errorf("%w (root is needed)", err)
	}
	if !errors.Is(err, ebpf.ErrNotSupported) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	for _, f := range Probe() {
		if errors.Is(f.Err, ebpf.ErrNotSupported) {
			err = fmt.Errorf("%w (this kernel lacks %s: %s)", err, f.Name, f.Needed)
		}
	}
	return err
}
