package datapath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrInUse says that another agent has the pin folder: it would undo what this one does.
var ErrInUse = errors.New("another agent uses this folder (stop it, or give each agent a --bpffs of its own)")

// ErrOtherVersion says that what another version pinned is in force. Two of them would redirect the same connections.
var ErrOtherVersion = errors.New("another version is installed (remove it with `culvert uninstall`)")

// layoutVersion names the folder of our pins. It changes with the layout of any map, so that an agent never adopts maps
// it would misread.
const layoutVersion = "v2"

// layout knows where our things are pinned.
type layout struct{ root string }

func newLayout(bpffs string) layout { return layout{filepath.Join(bpffs, layoutVersion)} }

// layouts finds the folders of all versions.
func layouts(bpffs string) ([]layout, error) {
	entries, err := os.ReadDir(bpffs)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	var all []layout
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), "v")
		if _, err := strconv.ParseUint(number, 10, 16); ok && err == nil && e.IsDir() {
			all = append(all, layout{filepath.Join(bpffs, e.Name())})
		}
	}
	return all, nil
}

// refuseOthers fails if another version has anything here.
func (l layout) refuseOthers() error {
	all, err := layouts(filepath.Dir(l.root))
	if err != nil {
		return fmt.Errorf("pin folder: %w", err)
	}
	for _, other := range all {
		if other != l {
			return fmt.Errorf("pin folder %s: %w", other.root, ErrOtherVersion)
		}
	}
	return nil
}

func (l layout) maps() string  { return filepath.Join(l.root, "maps") }
func (l layout) links() string { return filepath.Join(l.root, "links") }
func (l layout) pods() string  { return filepath.Join(l.root, "pods") }
func (l layout) pod(cookie uint64) string {
	return filepath.Join(l.pods(), strconv.FormatUint(cookie, 10))
}
func (l layout) linkPin(name string) string { return filepath.Join(l.links(), name) }

// create is for whoever holds the lock: another might be removing the same folders.
func (l layout) create() error {
	for _, dir := range []string{l.maps(), l.links(), l.pods()} {
		if err := makeFolder(dir); err != nil {
			return err
		}
	}
	return nil
}

func makeFolder(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
		return fmt.Errorf("pin folder: %w", err)
	}
	return nil
}

func (l layout) makeAndLock() (*os.File, error) {
	if err := makeFolder(l.root); err != nil {
		return nil, err
	}
	return l.lock()
}

// lock keeps agents and Uninstall apart. The kernel gives it up when the process ends, however it ends.
func (l layout) lock() (*os.File, error) {
	f, err := os.Open(l.root)
	if err != nil {
		return nil, fmt.Errorf("pin folder: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrInUse
	}
	if err == nil && !l.isAt(f) {
		// Whoever had the lock a moment ago removed the folder, and another may have made it anew and locked that one.
		err = ErrInUse
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("pin folder %s: %w", l.root, err)
	}
	return f, nil
}

// isAt reports whether our path still leads to that folder.
func (l layout) isAt(folder *os.File) bool {
	held, err := folder.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(l.root)
	return err == nil && os.SameFile(held, there)
}
