package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroup2Mount finds the unified hierarchy: /sys/fs/cgroup, or /sys/fs/cgroup/unified on hybrid
// hosts, or anywhere else.
func cgroup2Mount() (string, error) {
	mounts, err := readMounts()
	if err != nil {
		return "", err
	}
	for _, m := range mounts {
		if m.fstype == "cgroup2" {
			return m.path, nil
		}
	}
	return "", errors.New("cgroup2 is mounted nowhere (see /proc/self/mountinfo): mount -t cgroup2 none /sys/fs/cgroup/unified")
}

type mount struct{ path, fstype string }

func readMounts() ([]mount, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	var mounts []mount
	for line := range strings.Lines(string(b)) {
		before, after, ok := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 1 {
			continue
		}
		mounts = append(mounts, mount{path: unescapeMount.Replace(left[4]), fstype: right[0]})
	}
	return mounts, nil
}

// unescapeMount undoes the octal escapes of mountinfo.
var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func (l *Lab) makeCgroup(path string) error {
	if err := l.record.update(func(s *state) { s.Cgroups = append(s.Cgroups, path) }); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		return fmt.Errorf("lab: make cgroup: %w", err)
	}
	return nil
}

// emptyCgroup kills whatever is in the cgroup and below and waits until it is gone.
func emptyCgroup(path string) error {
	err := os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill cgroup: %w", err)
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		b, err := os.ReadFile(filepath.Join(path, "cgroup.events"))
		if errors.Is(err, fs.ErrNotExist) || strings.Contains(string(b), "populated 0") {
			return nil
		}
	}
	return fmt.Errorf("cgroup %s still has processes after 10 s", path)
}

// removeCgroup removes the cgroup and all below it.
func removeCgroup(path string) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list cgroup: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if e.IsDir() {
			errs = append(errs, removeCgroup(filepath.Join(path, e.Name())))
		}
	}
	return errors.Join(append(errs, rmdirCgroup(path))...)
}

// rmdirCgroup retries: for a moment after its last process went, a cgroup can still be busy.
func rmdirCgroup(path string) error {
	var err error
	for range 200 {
		err = unix.Rmdir(path)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("remove cgroup %s: %w", path, err)
}
