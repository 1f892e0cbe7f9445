package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNotALab says that the run directory exists and holds no lab.
var ErrNotALab = errors.New("not a lab's run directory")

// Down removes the lab of the run directory, whoever built it and however that ended. Without a
// run directory there is nothing to do. It refuses while the builder still runs, because that one
// cleans up by itself.
func Down(runDir string) error {
	runDir, err := cleanRunDir(runDir)
	if err != nil {
		return err
	}
	if _, err := os.Stat(runDir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	s, err := readState(runDir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("lab: %s: %w", runDir, ErrNotALab)
	}
	if err != nil {
		return err
	}
	if s.Owner.PID != os.Getpid() && s.Owner.alive(s.BootID) {
		return fmt.Errorf("lab: %s is in use by process %d, which removes it when it ends: interrupt it first", runDir, s.Owner.PID)
	}
	return tearDown(runDir, s)
}

// tearDown goes on after a failure and keeps the record until all else is gone, so that it can be
// called again.
func tearDown(runDir string, s *state) error {
	if err := s.check(runDir); err != nil {
		return err
	}
	var errs []error
	if s.BootID == bootID() {
		for _, p := range s.Processes {
			errs = append(errs, p.kill())
		}
	}
	// What was started at the moment of a crash is in no list, but it is in its cgroup.
	for _, c := range slices.Backward(s.Cgroups) {
		errs = append(errs, emptyCgroup(c), removeCgroup(c))
	}
	errs = append(errs, unmountBelow(runDir))
	for _, n := range s.Namespaces {
		errs = append(errs, deleteNamespace(n))
	}
	if s.NetnsDir {
		_ = unix.Rmdir(netnsDir) // stays when somebody else uses it by now
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("lab: tear down: %w", err)
	}
	if err := os.RemoveAll(runDir); err != nil {
		return fmt.Errorf("lab: remove run directory: %w", err)
	}
	return nil
}

// check makes sure that a damaged or foreign state file cannot make us remove what is not ours.
func (s *state) check(runDir string) error {
	if !validPrefix.MatchString(s.Prefix) {
		return fmt.Errorf("lab: state file of %s: bad prefix %q", runDir, s.Prefix)
	}
	top := filepath.Join(s.CgroupRoot, s.Prefix)
	for _, c := range s.Cgroups {
		if c != filepath.Clean(c) || c != top && !strings.HasPrefix(c, top+"/") {
			return fmt.Errorf("lab: state file of %s: cgroup %s is not below %s", runDir, c, top)
		}
	}
	for _, n := range s.Namespaces {
		if !strings.HasPrefix(n, s.Prefix+"-") || strings.Contains(n, "/") {
			return fmt.Errorf("lab: state file of %s: namespace %s does not begin with %s-", runDir, n, s.Prefix)
		}
	}
	return nil
}

// unmountBelow unmounts everything below dir, the deepest first. Going by what is mounted instead of
// by the record matters: removing the directory must never walk into a file system that was missed.
func unmountBelow(dir string) error {
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range slices.Backward(mounts) {
		if !strings.HasPrefix(m.path, dir+"/") {
			continue
		}
		err := unix.Unmount(m.path, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(m.path, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m.path, err))
		}
	}
	return errors.Join(errs...)
}
