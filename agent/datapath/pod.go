package datapath

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/bpf"
)

// The pins of a pod's links.
const lookupPin, ingressPin, egressPin = "lookup", "ingress", "egress"

// Attach puts a pod under the datapath, or, if it already is, renews its programs. SetPolicy comes first: a pod without
// modes is STRICT on all ports, which is no state to be enrolled into by mistake. SetListener may come first as well, and
// then no connection is refused for want of one. After an error Detach takes back what was done.
func (d *Datapath) Attach(w Workload) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.attach(w); err != nil {
		return fmt.Errorf("attach workload %d: %w", w.Cookie, explain(err))
	}
	d.attached[w.Cookie] = struct{}{}
	return nil
}

func (d *Datapath) attach(w Workload) error {
	if err := d.checkWorkload(w); err != nil {
		return err
	}
	entry, err := d.workloadEntry(w)
	if err != nil {
		return err
	}
	if err := os.Mkdir(d.layout.pod(w.Cookie), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("pin folder: %w", err)
	}
	// To attach to an interface is mostly to wait for the kernel: the other program is loaded meanwhile.
	var (
		lookup     map[string]*ebpf.Program
		lookupErr  error
		background sync.WaitGroup
	)
	background.Go(func() { lookup, lookupErr = d.podPrograms(d.lookup, w, entry) })
	err = d.attachGuards(w, entry)
	background.Wait()
	defer closePrograms(lookup)
	if err := errors.Join(err, lookupErr); err != nil {
		return err
	}
	if err := d.attachLookup(w, lookup["culvert_lookup"]); err != nil {
		return err
	}
	if err := d.maps.Workloads.Update(w.Cookie, entry, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("map of workloads: %w", err)
	}
	return nil
}

func (d *Datapath) checkWorkload(w Workload) error {
	if _, ok := d.modes[w.Cookie]; !ok {
		return errors.New("no policy has been set")
	}
	if !w.IPv4.IsValid() && !w.IPv6.IsValid() {
		return errors.New("no address")
	}
	if w.IPv4.IsValid() && !w.IPv4.Is4() || w.IPv6.IsValid() && (!w.IPv6.Is6() || w.IPv6.Is4In6()) {
		return fmt.Errorf("addresses %s and %s are not one of each family", w.IPv4, w.IPv6)
	}
	cookie, err := NetnsCookie(w.Netns)
	if err != nil {
		return err
	}
	if cookie != w.Cookie {
		return fmt.Errorf("network namespace %s has the cookie %d", w.Netns.Name(), cookie)
	}
	return nil
}

// workloadEntry keeps the mark of an adopted pod: packets with it may be under way while its programs change.
func (d *Datapath) workloadEntry(w Workload) (bpf.MapsWorkload, error) {
	e := bpf.MapsWorkload{Flags: uint32(bpf.MapsWorkloadFlagWORKLOAD_OUTBOUND), Ip6: bpf.Words(w.IPv6)}
	if w.IPv4.IsValid() {
		e.Ip4 = bpf.Words(w.IPv4)[3]
	}
	var old bpf.MapsWorkload
	err := d.maps.Workloads.Lookup(w.Cookie, &old)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return e, fmt.Errorf("map of workloads: %w", err)
	}
	for e.Mark = old.Mark; e.Mark == 0; {
		var b [4]byte
		rand.Read(b[:])
		e.Mark = binary.NativeEndian.Uint32(b[:])
	}
	return e, nil
}

func (d *Datapath) podPrograms(shared *ebpf.CollectionSpec, w Workload, e bpf.MapsWorkload) (map[string]*ebpf.Program, error) {
	constants := map[string]any{"COOKIE": w.Cookie, "POD_IP4": e.Ip4, "POD_IP6": e.Ip6, "MARK": e.Mark}
	spec := shared.Copy()
	for name, v := range spec.Variables {
		if err := v.Set(constants[name]); err != nil {
			return nil, fmt.Errorf("program constant %s: %w", name, err)
		}
	}
	coll, err := d.loadPrograms(spec)
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	programs := map[string]*ebpf.Program{}
	for name := range spec.Programs {
		programs[name] = coll.DetachProgram(name)
	}
	return programs, nil
}

func (d *Datapath) podPin(cookie uint64, name string) string {
	return filepath.Join(d.layout.pod(cookie), name)
}

func (d *Datapath) attachLookup(w Workload, program *ebpf.Program) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(w.Netns.Fd()), &st); err != nil {
		return fmt.Errorf("network namespace %s: %w", w.Netns.Name(), err)
	}
	here := func(i *link.Info) bool { return i.NetNs() != nil && uint64(i.NetNs().NetnsInode) == st.Ino }
	l, err := adopt(d.podPin(w.Cookie, lookupPin), program, here, func() (link.Link, error) {
		return link.AttachNetNs(int(w.Netns.Fd()), program)
	})
	if err != nil {
		return fmt.Errorf("attach sk_lookup to %s: %w", w.Netns.Name(), err)
	}
	return l.Close()
}

func (d *Datapath) attachGuards(w Workload, e bpf.MapsWorkload) error {
	programs, err := d.podPrograms(d.deliver, w, e)
	if err != nil {
		return err
	}
	defer closePrograms(programs)
	return d.attachInterface(w, programs)
}

// attachInterface hangs the pair on the pod's interface, before all others: who answers first decides. The guard of the
// way in comes first, because the way out opens what it guards.
func (d *Datapath) attachInterface(w Workload, programs map[string]*ebpf.Program) error {
	return inNetns(w.Netns, func() error {
		ifi, err := podInterface(w)
		if err != nil {
			return err
		}
		for _, h := range []struct {
			pin, program string
			attach       ebpf.AttachType
		}{{ingressPin, "culvert_ingress", ebpf.AttachTCXIngress}, {egressPin, "culvert_egress", ebpf.AttachTCXEgress}} {
			program := programs[h.program]
			here := func(i *link.Info) bool { return i.TCX() != nil && i.TCX().Ifindex == uint32(ifi.Index) }
			l, err := adopt(d.podPin(w.Cookie, h.pin), program, here, func() (link.Link, error) {
				return link.AttachTCX(link.TCXOptions{
					Interface: ifi.Index, Program: program, Attach: h.attach, Anchor: link.Head(),
				})
			})
			if err != nil {
				return fmt.Errorf("attach tcx %s to %s: %w", h.pin, ifi.Name, err)
			}
			if err := l.Close(); err != nil {
				return err
			}
		}
		return nil
	})
}
