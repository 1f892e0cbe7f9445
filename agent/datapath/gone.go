package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cilium/ebpf/link"
)

// Gone reports whether the network namespace of a workload is no more, also one that an earlier process attached or began
// to: then nothing is left that Detach could open. The kernel takes our links off a namespace that ends. Where they do not
// say so with one voice (one was never made, somebody else took one off), the node's namespaces are searched.
func (d *Datapath) Gone(cookie uint64) (bool, error) {
	hanging, pinned, err := d.podLinks(cookie)
	if err != nil {
		return false, fmt.Errorf("workload %d: %w", cookie, err)
	}
	if hanging[lookupPin] {
		return false, nil
	}
	if pinned == len(podPins()) && len(hanging) == 0 {
		return true, nil
	}
	living, err := livingNetns(map[uint64]bool{cookie: true})
	if err != nil {
		return false, fmt.Errorf("workload %d: %w", cookie, err)
	}
	return !living[cookie], nil
}

func podPins() []string { return []string{lookupPin, ingressPin, egressPin} }

// podLinks returns which of a pod's links hang on anything, and how many are pinned.
func (d *Datapath) podLinks(cookie uint64) (hanging map[string]bool, pinned int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	hanging = map[string]bool{}
	for _, name := range podPins() {
		target, ok, err := pinnedTarget(d.podPin(cookie, name))
		if err != nil {
			return nil, 0, err
		}
		if ok {
			pinned++
		}
		if target != 0 {
			hanging[name] = true
		}
	}
	return hanging, pinned, nil
}

// pinnedTarget returns what a pinned link of a pod hangs on, the inode of a network namespace or the index of an
// interface, or 0 if that is gone; and whether there is such a pin.
func pinnedTarget(pin string) (target uint64, pinned bool, err error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("pinned link %s: %w", pin, err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return 0, true, fmt.Errorf("pinned link %s: %w", pin, err)
	}
	switch {
	case info.NetNs() != nil:
		target = uint64(info.NetNs().NetnsInode)
	case info.TCX() != nil:
		target = uint64(info.TCX().Ifindex)
	}
	return target, true, nil
}

// livingNetns returns which of these network namespaces exist, by their cookies, among those that findNetns knows to find.
func livingNetns(wanted map[uint64]bool) (map[uint64]bool, error) {
	s := netnsSearch{found: map[uint64]*os.File{}}
	defer func() {
		for _, f := range s.found {
			f.Close()
		}
	}()
	living, asked := map[uint64]bool{}, map[uint64]bool{}
	for _, places := range netnsPlaces() {
		for _, path := range places() {
			s.look(path)
		}
		for inode, f := range s.found {
			if asked[inode] {
				continue
			}
			asked[inode] = true
			cookie, err := NetnsCookie(f)
			if err != nil {
				return nil, err
			}
			if wanted[cookie] {
				living[cookie] = true
			}
		}
		if len(living) == len(wanted) {
			return living, nil
		}
	}
	if len(asked) == 0 {
		return nil, errors.New("no network namespace is to be seen in /proc")
	}
	return living, nil
}
