// Package datapath loads the BPF programs, pins and adopts them, attaches them to pods and is the only writer of the
// policy maps. What it pins keeps working when its process is gone: a STRICT port stays STRICT.
//
// Locks: Datapath.mu guards every write to the maps and what is kept beside them; nothing else is locked.
package datapath

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/culvert-mesh/culvert/bpf"
	"github.com/culvert-mesh/culvert/policy"
)

// Datapath is the loaded datapath of this node.
type Datapath struct {
	log    *slog.Logger
	layout layout
	cgroup string
	lock   *os.File // held as long as the process lives: no other may write to these maps
	maps   *bpf.MapsMaps
	node   []link.Link
	probes link.Link // to the kubelet's cgroup; nil until ExemptProbes

	lookup, deliver *ebpf.CollectionSpec

	mu       sync.Mutex
	modes    map[uint64]policy.Modes
	captured *captured
	attached map[uint64]struct{} // what Attach finished and Detach did not begin
}

// Open loads the node's programs, or adopts what an earlier process pinned and puts the programs of this one in its
// place: no moment is without a program. Needs Linux 5.15, and 6.6 for Attach.
func Open(o Options) (*Datapath, error) {
	d, err := open(o)
	if err != nil {
		return nil, explain(err)
	}
	return d, nil
}

func open(o Options) (*Datapath, error) {
	if err := prepareBPFFS(o.BPFFS); err != nil {
		return nil, err
	}
	cgroup, err := findCgroup(o.Cgroup)
	if err != nil {
		return nil, err
	}
	d := &Datapath{
		log: o.Logger, layout: newLayout(o.BPFFS), cgroup: cgroup,
		modes: map[uint64]policy.Modes{}, attached: map[uint64]struct{}{},
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if err := d.layout.refuseOthers(); err != nil {
		return nil, err
	}
	if d.lock, err = d.layout.makeAndLock(); err != nil {
		return nil, err
	}
	if err := d.load(cgroup); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *Datapath) load(cgroup string) error {
	err := d.layout.create()
	if err != nil {
		return err
	}
	if d.lookup, err = bpf.LoadLookup(); err != nil {
		return err
	}
	if d.deliver, err = bpf.LoadDeliver(); err != nil {
		return err
	}
	if d.maps, err = openMaps(d.layout.maps()); err != nil {
		return err
	}
	if err := d.readModes(); err != nil {
		return err
	}
	if d.captured, err = readCaptured(d.maps.Captured); err != nil {
		return err
	}
	return d.attachNode(cgroup)
}

// openMaps makes the maps or adopts the pinned ones. An adopted map whose layout differs is an error and stays as it
// is: making it anew would forget every mode in it.
func openMaps(dir string) (*bpf.MapsMaps, error) {
	spec, err := bpf.LoadMaps()
	if err != nil {
		return nil, err
	}
	var m bpf.MapsMaps
	opts := &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: dir}}
	if err := spec.LoadAndAssign(&m, opts); err != nil {
		if errors.Is(err, ebpf.ErrMapIncompatible) {
			return nil, fmt.Errorf("maps in %s were pinned by another version (remove them with `culvert uninstall`): %w", dir, err)
		}
		return nil, fmt.Errorf("maps in %s: %w", dir, err)
	}
	return &m, nil
}

// replacements gives every program the same maps.
func replacements(m *bpf.MapsMaps) map[string]*ebpf.Map {
	return map[string]*ebpf.Map{
		bpf.MapsMapAcceptedDestination: m.AcceptedDestination,
		bpf.MapsMapCaptured:            m.Captured,
		bpf.MapsMapCounters:            m.Counters,
		bpf.MapsMapDelivered:           m.Delivered,
		bpf.MapsMapDeliveries:          m.Deliveries,
		bpf.MapsMapDelivery:            m.Delivery,
		bpf.MapsMapExempt:              m.Exempt,
		bpf.MapsMapInboundPlaintext:    m.InboundPlaintext,
		bpf.MapsMapListeners:           m.Listeners,
		bpf.MapsMapModes:               m.Modes,
		bpf.MapsMapOriginalDestination: m.OriginalDestination,
		bpf.MapsMapPlaintext:           m.Plaintext,
		bpf.MapsMapProbes:              m.Probes,
		bpf.MapsMapProbing:             m.Probing,
		bpf.MapsMapRedirects:           m.Redirects,
		bpf.MapsMapRefusalLimits:       m.RefusalLimits,
		bpf.MapsMapRefusals:            m.Refusals,
		bpf.MapsMapWorkloads:           m.Workloads,
	}
}

func (d *Datapath) loadPrograms(spec *ebpf.CollectionSpec) (*ebpf.Collection, error) {
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replacements(d.maps)})
	if err != nil {
		return nil, fmt.Errorf("load programs: %w", err)
	}
	return coll, nil
}

// Close lets go of the datapath. What is pinned goes on working.
func (d *Datapath) Close() error {
	var errs []error
	for _, l := range d.node {
		errs = append(errs, l.Close())
	}
	if d.probes != nil {
		errs = append(errs, d.probes.Close())
	}
	if d.maps != nil {
		errs = append(errs, d.maps.Close())
	}
	return errors.Join(append(errs, d.lock.Close())...)
}

// Workloads returns the cookies of all workloads that anything is kept of, also by an earlier process, also what it
// began and did not finish: what a new agent does not know any more, it detaches.
func (d *Datapath) Workloads() ([]uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	cookies := slices.Collect(maps.Keys(d.modes))
	var (
		cookie uint64
		w      bpf.MapsWorkload
	)
	it := d.maps.Workloads.Iterate()
	for it.Next(&cookie, &w) {
		cookies = append(cookies, cookie)
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("map of workloads: %w", err)
	}
	pinned, err := os.ReadDir(d.layout.pods())
	if err != nil {
		return nil, fmt.Errorf("pins of pods: %w", err)
	}
	for _, p := range pinned {
		if cookie, err := strconv.ParseUint(p.Name(), 10, 64); err == nil {
			cookies = append(cookies, cookie)
		}
	}
	slices.Sort(cookies)
	return slices.Compact(cookies), nil
}

// Exempt excludes a socket of ours from redirection, and makes it one that may deliver.
func (d *Datapath) Exempt(fd int) error {
	if err := d.maps.Exempt.Update(int32(fd), uint32(1), ebpf.UpdateAny); err != nil {
		return fmt.Errorf("exempt socket %d: %w", fd, err)
	}
	return nil
}
