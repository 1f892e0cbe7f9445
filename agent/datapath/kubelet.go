package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/bpf"
)

// probesPin names the link to the kubelet's cgroup. It is among the node's links, and Uninstall removes it with them.
const probesPin = "culvert_probe"

// manyProbes is when ExemptProbes looks for entries that nobody took away: a quarter of what the map holds.
const manyProbes = 4096

// ExemptProbes lets the TCP connections that processes of the kubelet's cgroup open from the caller's own network
// namespace reach STRICT ports of local pods, each by its exact addresses and ports and only while its handshake lasts.
// The cgroup must be the kubelet's alone: one below it would be exempt as well, so there may be none.
//
// It is to be called again every second or so: nothing is done as long as the cgroup is the same one, and a kubelet that
// was restarted, in a cgroup made anew, is exempted from then on. What it attaches is pinned; a successor takes it over.
func (d *Datapath) ExemptProbes(cgroup string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.exemptProbes(cgroup); err != nil {
		return fmt.Errorf("exempt probes of cgroup %s: %w", cgroup, explain(err))
	}
	return d.forgetLostProbes(manyProbes)
}

func (d *Datapath) exemptProbes(cgroup string) error {
	var st unix.Stat_t
	if err := unix.Stat(cgroup, &st); err != nil {
		return err
	}
	if err := checkKubeletCgroup(cgroup, d.cgroup); err != nil {
		// It may have been the kubelet's alone a second ago.
		return errors.Join(err, d.refuseProbes())
	}
	here := func(i *link.Info) bool { return i.Cgroup() != nil && i.Cgroup().CgroupId == st.Ino }
	if d.probes != nil {
		if i, err := d.probes.Info(); err == nil && here(i) {
			return nil
		}
	}
	program, err := d.probeProgram()
	if err != nil {
		return err
	}
	defer program.Close()
	l, err := adopt(d.layout.linkPin(probesPin), program, here, func() (link.Link, error) {
		return link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: ebpf.AttachCGroupSockOps, Program: program})
	})
	if err != nil {
		return err
	}
	old := d.probes
	d.probes = l
	if old != nil {
		return old.Close()
	}
	return nil
}

// checkKubeletCgroup also demands that it is below the node's, because the programs there take the entries away.
func checkKubeletCgroup(cgroup, node string) error {
	if err := checkFS(cgroup, unix.CGROUP2_SUPER_MAGIC, "cgroup2"); err != nil {
		return err
	}
	entries, err := os.ReadDir(cgroup)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			return fmt.Errorf("has the cgroup %s below it, so it is not the kubelet's alone", e.Name())
		}
	}
	var root, above unix.Stat_t
	if err := unix.Stat(node, &root); err != nil {
		return err
	}
	real, err := filepath.EvalSymlinks(cgroup)
	if err != nil {
		return err
	}
	for dir := filepath.Dir(real); checkFS(dir, unix.CGROUP2_SUPER_MAGIC, "cgroup2") == nil; dir = filepath.Dir(dir) {
		// There is one cgroup2 hierarchy, and its inodes are the same through every mount of it.
		if unix.Stat(dir, &above) == nil && above.Ino == root.Ino {
			return nil
		}
	}
	return fmt.Errorf("is not below the node's cgroup %s", node)
}

func (d *Datapath) probeProgram() (*ebpf.Program, error) {
	spec, err := bpf.LoadProbe()
	if err != nil {
		return nil, err
	}
	host, err := ownNetnsCookie()
	if err != nil {
		return nil, err
	}
	if err := spec.Variables["HOST"].Set(host); err != nil {
		return nil, fmt.Errorf("program constant: %w", err)
	}
	coll, err := d.loadPrograms(spec)
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	return coll.DetachProgram("culvert_probe"), nil
}

// RefuseProbes takes ExemptProbes back, also an earlier process's: STRICT ports refuse the kubelet like anybody else.
func (d *Datapath) RefuseProbes() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.refuseProbes(); err != nil {
		return fmt.Errorf("refuse probes: %w", err)
	}
	return nil
}

func (d *Datapath) refuseProbes() error {
	var errs []error
	if d.probes != nil {
		errs = append(errs, d.probes.Close())
		d.probes = nil
	}
	errs = append(errs,
		ignoreMissing(detachPin(d.layout.linkPin(probesPin))),
		deleteWhere(d.maps.Probes, bpf.MapsProbeKey{}, bpf.MapsProbeValue{}, func(bpf.MapsProbeKey) bool { return true }))
	return errors.Join(errs...)
}

// forgetLostProbes removes entries without a socket, if there are more entries than that. The kernel removes an entry
// with its socket, unless a foreign program switched our callbacks off; such an entry opens nothing for long, but it
// takes a place. The entries are read before the sockets: what has a socket now is never among those to remove.
func (d *Datapath) forgetLostProbes(more int) error {
	lost := map[bpf.MapsProbeKey]bool{}
	var (
		k bpf.MapsProbeKey
		v bpf.MapsProbeValue
	)
	it := d.maps.Probes.Iterate()
	for it.Next(&k, &v) {
		lost[k] = true
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("map of probes: %w", err)
	}
	if len(lost) <= more {
		return nil
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, err := dumpSockets(family, d.maps.Probing.FD())
		if err != nil {
			return err
		}
		for _, s := range sockets {
			delete(lost, probeKey(s.id.local, s.id.remote))
		}
	}
	if len(lost) == 0 {
		return nil
	}
	d.log.Warn("entries of probes without a socket: another sockops program clears our callbacks", "removed", len(lost))
	return deleteWhere(d.maps.Probes, k, v, func(k bpf.MapsProbeKey) bool { return lost[k] })
}

func probeKey(from, to netip.AddrPort) bpf.MapsProbeKey {
	return bpf.MapsProbeKey{
		Source: bpf.Words(from.Addr()), Destination: bpf.Words(to.Addr()),
		SourcePort: from.Port(), DestinationPort: to.Port(),
	}
}
