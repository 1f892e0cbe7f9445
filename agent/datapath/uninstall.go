package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/bpf"
)

// Installed reports whether anything of ours is pinned, by whichever version.
func Installed(o Options) (bool, error) {
	all, err := layouts(o.BPFFS)
	if err != nil || len(all) == 0 {
		return false, err
	}
	return true, checkFS(o.BPFFS, unix.BPF_FS_MAGIC, "bpf")
}

// Uninstall removes everything of ours from the node, whichever version pinned it, bind and connect hooks first, and
// nothing else. What is being delivered is reset before, because without the programs it would go on in plaintext, on the
// wire; if that fails for a pod, the error says so, and everything is removed all the same. A node without any of it is no
// error. While an agent enforces here it removes nothing at all and the error is ErrInUse.
func Uninstall(o Options) error {
	all, err := layouts(o.BPFFS)
	if err != nil || len(all) == 0 {
		return err
	}
	// All of them before the first is touched.
	locks, err := lockAll(all)
	defer func() {
		for _, f := range locks {
			f.Close()
		}
	}()
	if err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	var errs []error
	for _, l := range all {
		if err := l.uninstall(); err != nil {
			errs = append(errs, fmt.Errorf("uninstall %s: %w", l.root, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// The folder above may be a mount point, or hold what is not ours; then it stays.
	_ = os.Remove(o.BPFFS)
	return nil
}

// lockAll returns the locks it got also when it did not get all. A folder that is gone needs none.
func lockAll(all []layout) ([]*os.File, error) {
	var locks []*os.File
	for _, l := range all {
		f, err := l.lock()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return locks, err
		}
		locks = append(locks, f)
	}
	return locks, nil
}

func (l layout) uninstall() error {
	errs := []error{detachAll(l.links())}
	var open error
	if filepath.Base(l.root) == layoutVersion { // the maps of others cannot be read
		open = l.resetDeliveries()
	}
	pods, err := os.ReadDir(l.pods())
	errs = append(errs, ignoreMissing(err))
	for _, p := range pods {
		errs = append(errs, detachAll(filepath.Join(l.pods(), p.Name())))
	}
	errs = append(errs, ignoreMissing(os.Remove(l.pods())))
	if err := errors.Join(errs...); err != nil {
		return errors.Join(err, open)
	}
	// The maps go last, and not at all while a program may still look into them.
	return errors.Join(os.RemoveAll(l.root), open)
}

// resetDeliveries ends what is delivered in any pod. The connect hooks are gone by now, so there is nothing new; the
// pods' programs are still there, so that the resets stay inside the pods too.
func (l layout) resetDeliveries() error {
	m, err := openMaps(l.maps())
	if err != nil {
		return err
	}
	defer m.Close()
	d := &Datapath{layout: l, maps: m}
	pods, err := d.podsWithDeliveries()
	if err != nil {
		return err
	}
	wanted := map[uint64]bool{}
	for _, inode := range pods {
		wanted[inode] = true
	}
	namespaces := findNetns(wanted)
	var errs []error
	for cookie, inode := range pods {
		netns, ok := namespaces[inode]
		if !ok {
			errs = append(errs, fmt.Errorf("deliveries of workload %d: its network namespace was not found", cookie))
			continue
		}
		_, err := d.CloseDeliveries(netns, cookie)
		errs = append(errs, err)
	}
	for _, f := range namespaces {
		f.Close()
	}
	return errors.Join(errs...)
}

// podsWithDeliveries returns the inodes of their network namespaces. A namespace that is no more has nothing to say.
func (d *Datapath) podsWithDeliveries() (map[uint64]uint64, error) {
	deliver, err := d.delivering()
	if err != nil {
		return nil, err
	}
	pods := map[uint64]uint64{}
	for cookie := range deliver {
		inode, _, err := pinnedTarget(d.podPin(cookie, lookupPin))
		if err != nil {
			return nil, err
		}
		if inode != 0 {
			pods[cookie] = inode
		}
	}
	return pods, nil
}

func (d *Datapath) delivering() (map[uint64]bool, error) {
	cookies := map[uint64]bool{}
	var (
		k bpf.MapsDeliveryKey
		v bpf.MapsDeliveryValue
	)
	it := d.maps.Deliveries.Iterate()
	for it.Next(&k, &v) {
		cookies[k.Cookie] = true
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("map of deliveries: %w", err)
	}
	return cookies, nil
}
