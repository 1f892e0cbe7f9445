package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/cilium/ebpf"

	"github.com/culvert-mesh/culvert/bpf"
)

// OpenPlaintext is how many plaintext connections of a peer to a port are open.
type OpenPlaintext struct {
	Port  uint16
	Peer  netip.Addr
	Count uint64
}

// isOpen leaves out handshakes and what is over at both ends. A client that closed its side may still read, and one whose
// server did may still write.
func (k *diagSocket) isOpen() bool {
	const established, finWait1, finWait2, closeWait = 1, 4, 5, 8
	return k.state == established || k.state == finWait1 || k.state == finWait2 || k.state == closeWait
}

// OpenPlaintext lists the connections of a pod, once made, that ClosePlaintext would close if all its ports were named.
func (d *Datapath) OpenPlaintext(netns *os.File, cookie uint64) ([]OpenPlaintext, error) {
	var w bpf.MapsWorkload
	if err := d.maps.Workloads.Lookup(cookie, &w); err != nil {
		return nil, fmt.Errorf("open plaintext: workload %d: %w", cookie, err)
	}
	type endpoint struct {
		port uint16
		peer netip.Addr
	}
	counts := map[endpoint]uint64{}
	s := sweep{d: d, cookie: cookie, workload: w}
	anyPort := func(uint16) bool { return true }
	err := inNetns(netns, func() error {
		return s.each(func(k diagSocket, inbound bool) error {
			if k.isOpen() && inbound && s.isPlaintext(k, anyPort) {
				counts[endpoint{k.id.local.Port(), k.id.remote.Addr().Unmap()}]++
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("open plaintext of workload %d: %w", cookie, err)
	}
	open := make([]OpenPlaintext, 0, len(counts))
	for e, n := range counts {
		open = append(open, OpenPlaintext{e.port, e.peer, n})
	}
	return open, nil
}

// Watched reports whether the connections of a network namespace are counted, by programs of this process or of one before.
func (d *Datapath) Watched(cookie uint64) (bool, error) {
	var w bpf.MapsWorkload
	err := d.maps.Workloads.Lookup(cookie, &w)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("map of workloads: %w", err)
	}
	return true, nil
}
