package datapath

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// maxForeign bounds what is told of one hook: the kernel itself allows 64.
const maxForeign = 64

// Foreign is a program of somebody else on a hook that we use too. It may see connections before ours do, and change
// them.
type Foreign struct {
	Hook string
	ID   uint32
	Name string
}

// ForeignOnNode returns what others hung on the cgroup that our hooks are on.
func (d *Datapath) ForeignOnNode() ([]Foreign, error) {
	cgroup, err := os.Open(d.cgroup)
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	defer cgroup.Close()
	ours := map[ebpf.ProgramID]bool{}
	for _, l := range d.node {
		id, err := programOf(l)
		if err != nil {
			return nil, err
		}
		ours[id] = true
	}
	var all []Foreign
	for _, h := range nodeHooks() {
		found, err := foreign(h.attach.String(), int(cgroup.Fd()), h.attach, ours)
		if err != nil {
			return nil, fmt.Errorf("cgroup %s: %w", d.cgroup, err)
		}
		all = append(all, found...)
	}
	return all, nil
}

// ForeignOnPod returns what others hung on a pod's namespace and interface. What hangs on its interface by classic tc is
// not found.
func (d *Datapath) ForeignOnPod(w Workload) ([]Foreign, error) {
	ours := map[ebpf.ProgramID]bool{}
	for _, pin := range []string{lookupPin, ingressPin, egressPin} {
		l, err := link.LoadPinnedLink(d.podPin(w.Cookie, pin), nil)
		if err != nil {
			return nil, fmt.Errorf("pinned link: %w", err)
		}
		id, err := programOf(l)
		if err := errors.Join(err, l.Close()); err != nil {
			return nil, err
		}
		ours[id] = true
	}
	all, err := foreign(ebpf.AttachSkLookup.String(), int(w.Netns.Fd()), ebpf.AttachSkLookup, ours)
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", w.Netns.Name(), err)
	}
	err = inNetns(w.Netns, func() error {
		ifi, err := podInterface(w)
		if err != nil {
			return err
		}
		for _, attach := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			found, err := foreign(attach.String()+" of "+ifi.Name, ifi.Index, attach, ours)
			if err != nil {
				return fmt.Errorf("interface %s: %w", ifi.Name, err)
			}
			all = append(all, found...)
		}
		return nil
	})
	return all, err
}

func programOf(l link.Link) (ebpf.ProgramID, error) {
	info, err := l.Info()
	if err != nil {
		return 0, fmt.Errorf("link: %w", err)
	}
	return info.Program, nil
}

func foreign(hook string, target int, attach ebpf.AttachType, ours map[ebpf.ProgramID]bool) ([]Foreign, error) {
	there, err := link.QueryPrograms(link.QueryOptions{Target: target, Attach: attach})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", hook, err)
	}
	var all []Foreign
	for _, p := range there.Programs[:min(len(there.Programs), maxForeign)] {
		if !ours[p.ID] {
			all = append(all, Foreign{Hook: hook, ID: uint32(p.ID), Name: programName(p.ID)})
		}
	}
	return all, nil
}

// programName is empty for a program that is gone by now, or has none.
func programName(id ebpf.ProgramID) string {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return ""
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return ""
	}
	return info.Name
}
