package datapath

import (
	"errors"
	"fmt"
	"net"

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

// HasListener reports whether a listening socket that somebody still holds is in its place.
func (d *Datapath) HasListener(cookie uint64, slot ListenerSlot) (bool, error) {
	var socket uint64
	err := d.maps.Listeners.Lookup(bpf.MapsListenerKey{Cookie: cookie, Slot: uint32(slot)}, &socket)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("listener of workload %d: %w", cookie, err)
	}
	return true, nil
}
