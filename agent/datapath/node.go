package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/bpf"
)

type nodeHook struct {
	program string
	attach  ebpf.AttachType
}

// nodeHooks lists the programs of the node's cgroup, connect last: it hands connections to all the others. They are
// detached in the order of their names: bind before connect, so that nobody asks for a delivery that no connect registers.
func nodeHooks() []nodeHook {
	return []nodeHook{
		{"culvert_sockops", ebpf.AttachCGroupSockOps},
		{"culvert_sock_release", ebpf.AttachCgroupInetSockRelease},
		{"culvert_getpeername4", ebpf.AttachCgroupInet4GetPeername},
		{"culvert_getpeername6", ebpf.AttachCgroupInet6GetPeername},
		{"culvert_getsockname4", ebpf.AttachCgroupInet4GetSockname},
		{"culvert_getsockname6", ebpf.AttachCgroupInet6GetSockname},
		{"culvert_bind4", ebpf.AttachCGroupInet4Bind},
		{"culvert_bind6", ebpf.AttachCGroupInet6Bind},
		{"culvert_connect4", ebpf.AttachCGroupInet4Connect},
		{"culvert_connect6", ebpf.AttachCGroupInet6Connect},
	}
}

func (d *Datapath) nodePrograms() (map[string]*ebpf.Program, error) {
	connect, err := bpf.LoadConnect()
	if err != nil {
		return nil, err
	}
	// Without it (before Linux 5.18) a refused connect fails with EPERM.
	setRetval := features.HaveProgramHelper(ebpf.CGroupSockAddr, asm.FnSetRetval) == nil
	if err := connect.Variables["HAVE_SET_RETVAL"].Set(setRetval); err != nil {
		return nil, fmt.Errorf("connect programs: %w", err)
	}
	sockops, err := bpf.LoadSockops()
	if err != nil {
		return nil, err
	}
	tunnel, err := bpf.LoadTunnel()
	if err != nil {
		return nil, err
	}
	programs := map[string]*ebpf.Program{}
	for _, spec := range []*ebpf.CollectionSpec{connect, sockops, tunnel} {
		coll, err := d.loadPrograms(spec)
		if err != nil {
			closePrograms(programs)
			return nil, err
		}
		for name := range spec.Programs {
			programs[name] = coll.DetachProgram(name)
		}
		coll.Close()
	}
	return programs, nil
}

func closePrograms(programs map[string]*ebpf.Program) {
	for _, p := range programs {
		p.Close()
	}
}

func (d *Datapath) attachNode(cgroup string) error {
	programs, err := d.nodePrograms()
	if err != nil {
		return err
	}
	defer closePrograms(programs)
	var st unix.Stat_t
	if err := unix.Stat(cgroup, &st); err != nil {
		return fmt.Errorf("cgroup %s: %w", cgroup, err)
	}
	for _, h := range nodeHooks() {
		here := func(i *link.Info) bool { return i.Cgroup() != nil && i.Cgroup().CgroupId == st.Ino }
		l, err := adopt(d.layout.linkPin(h.program), programs[h.program], here, func() (link.Link, error) {
			return link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: h.attach, Program: programs[h.program]})
		})
		if err != nil {
			return fmt.Errorf("attach %s to %s: %w", h.program, cgroup, err)
		}
		d.node = append(d.node, l)
	}
	return nil
}

// adopt puts the program into the pinned link, or attaches and pins a new one if there is none or if it hangs on
// something that is gone or not ours any more. The old link is removed only when the new one works.
func adopt(pin string, program *ebpf.Program, here func(*link.Info) bool, attach func() (link.Link, error)) (link.Link, error) {
	old, err := link.LoadPinnedLink(pin, nil)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("pinned link %s: %w", pin, err)
	}
	if err == nil {
		if info, err := old.Info(); err == nil && here(info) && old.Update(program) == nil {
			return old, nil
		}
		defer old.Close()
	}
	l, err := attach()
	if err != nil {
		return nil, err
	}
	if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("pinned link: %w", err), l.Close())
	}
	if err := l.Pin(pin); err != nil {
		return nil, errors.Join(fmt.Errorf("pin link: %w", err), l.Close())
	}
	return l, nil
}
