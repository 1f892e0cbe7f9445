package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/culvert-mesh/culvert/bpf"
)

// countBatch is how many entries one call reads. It is more than any bucket of a hash map holds: the kernel never
// returns part of one.
const countBatch = 4096

// Fill is how full a map is.
type Fill struct {
	Map          string
	Entries, Max int
}

// Fill counts the entries of the maps that can become full. Those of sockets and the ring of refusals are left out:
// the kernel does not count them either. It reads the whole maps, so it is for every few seconds at most.
func (d *Datapath) Fill() ([]Fill, error) {
	var all []Fill
	for _, m := range []struct {
		name  string
		of    *ebpf.Map
		count func(*ebpf.Map) (int, error)
	}{
		{bpf.MapsMapCaptured, d.maps.Captured, entries[bpf.MapsPrefixKey, uint32]},
		{bpf.MapsMapDeliveries, d.maps.Deliveries, entries[bpf.MapsDeliveryKey, bpf.MapsDeliveryValue]},
		{bpf.MapsMapListeners, d.maps.Listeners, keys[bpf.MapsListenerKey]},
		{bpf.MapsMapModes, d.maps.Modes, entries[bpf.MapsModeKey, uint32]},
		{bpf.MapsMapPlaintext, d.maps.Plaintext, entries[bpf.MapsPlaintextKey, bpf.MapsPlaintextValue]},
		{bpf.MapsMapProbes, d.maps.Probes, entries[bpf.MapsProbeKey, bpf.MapsProbeValue]},
		{bpf.MapsMapRedirects, d.maps.Redirects, entries[bpf.MapsRedirectKey, bpf.MapsEndpoint]},
		{bpf.MapsMapWorkloads, d.maps.Workloads, entries[uint64, bpf.MapsWorkload]},
	} {
		n, err := m.count(m.of)
		if err != nil {
			return nil, fmt.Errorf("count map %s: %w", m.name, err)
		}
		all = append(all, Fill{m.name, n, int(m.of.MaxEntries())})
	}
	return all, nil
}

// entries counts them.
func entries[K, V any](m *ebpf.Map) (n int, err error) {
	err = batches(m, func(keys []K, _ []V) { n += len(keys) })
	return n, err
}

// batches reads all entries, many by one call. One that comes or goes meanwhile is read or not; unlike with one call for
// each, none has it begin anew. Needs Linux 5.6, for a trie 5.13.
func batches[K, V any](m *ebpf.Map, f func([]K, []V)) error {
	k, v := make([]K, countBatch), make([]V, countBatch)
	var at ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&at, k, v, nil)
		f(k[:n], v[:n])
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// keys counts one by one: a map of sockets has no batches. An entry that goes meanwhile has the kernel begin anew, so
// that more than fit in are none.
func keys[K any](m *ebpf.Map) (n int, err error) {
	var at, next K
	for err = m.NextKey(nil, &next); err == nil && n < int(m.MaxEntries()); err = m.NextKey(&at, &next) {
		at = next
		n++
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		err = nil
	}
	return n, err
}
