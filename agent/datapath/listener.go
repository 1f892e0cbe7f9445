package datapath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/culvert-mesh/culvert/bpf"
)

// SetListener puts a listening socket of the pod in its place; the one that was there gets no new connections. The
// kernel forgets a listener when its last descriptor is closed. Multipath TCP must be off: its listeners cannot be held.
func (d *Datapath) SetListener(cookie uint64, slot ListenerSlot, l *net.TCPListener) error {
	if slot > HBONEIPv6 {
		return fmt.Errorf("no listener slot %d", slot)
	}
	raw, err := l.SyscallConn()
	if err != nil {
		return fmt.Errorf("listener %s: %w", l.Addr(), err)
	}
	var updateErr error
	err = raw.Control(func(fd uintptr) {
		k := bpf.MapsListenerKey{Cookie: cookie, Slot: uint32(slot)}
		updateErr = d.maps.Listeners.Update(k, uint64(fd), ebpf.UpdateAny)
	})
	if err := errors.Join(err, updateErr); err != nil {
		return fmt.Errorf("listener %s of workload %d: %w", l.Addr(), cookie, err)
	}
	return nil
}

// SetCaptured says which destinations are redirected. What stays captured is captured all the time; what is new comes
// before what is no longer wanted goes.
func (d *Datapath) SetCaptured(prefixes []netip.Prefix) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	wanted := map[bpf.MapsPrefixKey]bool{}
	for _, p := range prefixes {
		if !p.IsValid() {
			return fmt.Errorf("captured prefix %s is not valid", p)
		}
		wanted[prefixKey(p)] = true
	}
	for k := range wanted {
		if err := d.maps.Captured.Update(k, uint32(1), ebpf.UpdateAny); err != nil {
			return fmt.Errorf("captured prefix %s/%d: %w", bpf.Address(k.Ip), k.Bits, err)
		}
	}
	err := deleteWhere(d.maps.Captured, bpf.MapsPrefixKey{}, uint32(0), func(k bpf.MapsPrefixKey) bool { return !wanted[k] })
	if err != nil {
		return fmt.Errorf("captured prefixes: %w", err)
	}
	return nil
}

func prefixKey(p netip.Prefix) bpf.MapsPrefixKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return bpf.MapsPrefixKey{Bits: uint32(bits), Ip: bpf.Words(p.Masked().Addr())}
}
