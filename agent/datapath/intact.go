package datapath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Intact returns what of ours somebody else took away: the pin folder, a pin of a map or of a link, or a hook that no
// longer hangs where it was put. There is nothing to be done about it in this process: the next one makes everything
// anew. It costs a few system calls for each workload, and is meant for once a minute.
//
// A pod whose namespace or interface is gone is no damage: that is how pods end.
func (d *Datapath) Intact() error {
	if !d.layout.isAt(d.lock) {
		return fmt.Errorf("pin folder %s is not the one this process made or adopted", d.layout.root)
	}
	errs := []error{d.nodeIntact(), d.mapsIntact()}
	suspects, err := d.podsIntact()
	errs = append(errs, err)
	if len(suspects) > 0 {
		living, err := livingNetns(suspects)
		errs = append(errs, err)
		for cookie := range living {
			errs = append(errs, fmt.Errorf("link %s is off the network namespace", d.podPin(cookie, lookupPin)))
		}
	}
	return errors.Join(errs...)
}

// nodeIntact asks the links that are held, not what is pinned: nobody else pins anything in a folder that we have locked.
func (d *Datapath) nodeIntact() error {
	var st unix.Stat_t
	if err := unix.Stat(d.cgroup, &st); err != nil {
		return fmt.Errorf("cgroup %s: %w", d.cgroup, err)
	}
	var errs []error
	for i, h := range nodeHooks() {
		errs = append(errs, pinExists(d.layout.linkPin(h.program)))
		info, err := d.node[i].Info()
		if err != nil {
			errs = append(errs, fmt.Errorf("link of %s: %w", h.program, err))
		} else if info.Cgroup() == nil || info.Cgroup().CgroupId != st.Ino {
			errs = append(errs, fmt.Errorf("%s is off the cgroup %s", h.program, d.cgroup))
		}
	}
	return errors.Join(errs...)
}

func (d *Datapath) mapsIntact() error {
	var errs []error
	for name := range replacements(d.maps) {
		errs = append(errs, pinExists(filepath.Join(d.layout.maps(), name)))
	}
	return errors.Join(errs...)
}

// podsIntact looks after what this process attached; what is left of an earlier one is for the caller to detach. It
// returns the pods whose namespace is gone, if it was not somebody who took the link off it.
func (d *Datapath) podsIntact() (suspects map[uint64]bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	if d.probes != nil {
		errs = append(errs, pinExists(d.layout.linkPin(probesPin)))
	}
	suspects = map[uint64]bool{}
	for cookie := range d.attached {
		inode, pinned, err := pinnedTarget(d.podPin(cookie, lookupPin))
		if !pinned {
			err = errors.Join(err, pinExists(d.podPin(cookie, lookupPin)))
		} else if err == nil && inode == 0 {
			suspects[cookie] = true
		}
		errs = append(errs, err, pinExists(d.podPin(cookie, ingressPin)), pinExists(d.podPin(cookie, egressPin)))
	}
	return suspects, errors.Join(errs...)
}

func pinExists(pin string) error {
	if _, err := os.Lstat(pin); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	return nil
}
