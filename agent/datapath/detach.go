package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/culvert-mesh/culvert/bpf"
)

// Detach takes a pod out: its programs, pins and everything the maps hold of it. What is not there is no error.
func (d *Datapath) Detach(cookie uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.attached, cookie)
	errs := []error{ignoreMissing(d.maps.Workloads.Delete(cookie)), detachAll(d.layout.pod(cookie))}
	for slot := OutboundIPv4; slot <= HBONEIPv6; slot++ {
		k := bpf.MapsListenerKey{Cookie: cookie, Slot: uint32(slot)}
		errs = append(errs, ignoreMissing(d.maps.Listeners.Delete(k)))
	}
	errs = append(errs,
		deleteWhere(d.maps.Redirects, bpf.MapsRedirectKey{}, bpf.MapsEndpoint{}, func(k bpf.MapsRedirectKey) bool { return k.Cookie == cookie }),
		deleteWhere(d.maps.Deliveries, bpf.MapsDeliveryKey{}, bpf.MapsDeliveryValue{}, func(k bpf.MapsDeliveryKey) bool { return k.Cookie == cookie }),
		deleteWhere(d.maps.Plaintext, bpf.MapsPlaintextKey{}, bpf.MapsPlaintextValue{}, func(k bpf.MapsPlaintextKey) bool { return k.Cookie == cookie }),
		// Last: as long as a program of ours is left, it finds the modes.
		d.forgetModes(cookie))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach workload %d: %w", cookie, err)
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// deleteWhere collects first: to delete while iterating over a hash makes the kernel start again.
func deleteWhere[K, V any](m *ebpf.Map, k K, v V, match func(K) bool) error {
	var found []K
	it := m.Iterate()
	for it.Next(&k, &v) {
		if match(k) {
			found = append(found, k)
		}
	}
	errs := []error{it.Err()}
	for i := range found {
		errs = append(errs, ignoreMissing(m.Delete(&found[i])))
	}
	return errors.Join(errs...)
}

// detachAll detaches the pinned links of a folder and removes it.
func detachAll(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ignoreMissing(err)
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, detachPin(filepath.Join(dir, e.Name())))
	}
	return errors.Join(append(errs, ignoreMissing(os.Remove(dir)))...)
}

// detachPin also detaches links that another process still holds. A link whose namespace is gone is detached already.
func detachPin(pin string) error {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return fmt.Errorf("pinned link %s: %w", pin, err)
	}
	_ = l.Detach()
	return errors.Join(os.Remove(pin), l.Close())
}
