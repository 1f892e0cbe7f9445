package kubelet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// maxCgroups bounds the search: a node has some thousands.
const maxCgroups = 200_000

// mountOfCgroup2 is /sys/fs/cgroup, or below it on hosts that use both versions.
func (f *finder) mountOfCgroup2() (string, error) {
	b, err := os.ReadFile(filepath.Join(f.proc, "thread-self", "mountinfo"))
	if err != nil {
		return "", fmt.Errorf("mounts: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		// proc(5): "id parent major:minor root mount-point options [optional...] - type source ..."
		mount, kind, _ := strings.Cut(line, " - ")
		fields := strings.Fields(mount)
		if strings.HasPrefix(kind, "cgroup2 ") && len(fields) > 4 {
			return fields[4], nil
		}
	}
	return "", errors.New("no cgroup2 file system is mounted")
}

// cgroupOf finds the directory of a process's cgroup. The kernel tells it relative to the cgroup namespace of who asks,
// which may lie below (in a container) or beside what is mounted here: then "/../.." leads nowhere. So the path is only
// tried, and what counts is the directory that lists the process.
func (f *finder) cgroupOf(pid int) (string, error) {
	b, err := os.ReadFile(f.path(pid, "cgroup"))
	if err != nil {
		return "", err
	}
	path := ""
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(line, "0::"); ok {
			path = strings.TrimSuffix(p, "\n")
		}
	}
	if path == "" {
		return "", errors.New("is in no cgroup of version 2")
	}
	dir := filepath.Join(f.cgroups, path)
	if strings.Contains(path, "/..") || !f.lists(dir, pid) {
		if dir, err = f.search(pid); err != nil {
			return "", err
		}
	}
	if dir == f.cgroups {
		return "", errors.New("is in the root of all cgroups, which is not its own")
	}
	// By both names: the one can be cut off by a cgroup namespace, the other by what is mounted here.
	if ofPods(path) || ofPods(dir) {
		return "", fmt.Errorf("is in the cgroup of a pod (%s)", path)
	}
	return dir, nil
}

// ofPods knows the kubelet's own name for what is above all pods, with both cgroup drivers.
func ofPods(path string) bool { return strings.Contains(path, "kubepods") }

func (f *finder) members(dir string) ([]int, error) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, s := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(s)
		if err != nil {
			return nil, fmt.Errorf("members of cgroup %s: %w", dir, err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

func (f *finder) lists(dir string, pid int) bool {
	members, err := f.members(dir)
	if err != nil {
		return false
	}
	for _, m := range members {
		if m == pid {
			return true
		}
	}
	return false
}

func (f *finder) search(pid int) (string, error) {
	found, seen := "", 0
	err := filepath.WalkDir(f.cgroups, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil && path == f.cgroups:
			return err
		case err != nil || !e.IsDir():
			return nil // a cgroup that went meanwhile
		case seen == maxCgroups:
			return errors.New("too many cgroups to search")
		case f.lists(path, pid):
			found = path
			return fs.SkipAll
		}
		seen++
		return nil
	})
	if err == nil && found == "" {
		err = fmt.Errorf("no cgroup below %s lists it", f.cgroups)
	}
	return found, err
}

// checkMembers refuses a cgroup that the kubelet shares: with who started it, or with a container.
func (f *finder) checkMembers(pid int, dir string) error {
	members, err := f.members(dir)
	if err != nil {
		return err
	}
	ancestors := f.ancestors(pid)
	for _, m := range members {
		if ancestors[m] {
			return fmt.Errorf("shares its cgroup %s with process %d (%s), which started it", dir, m, f.comm(m))
		}
		if id, err := f.namespace(m, "mnt"); err == nil && id != f.host["mnt"] {
			return fmt.Errorf("shares its cgroup %s with process %d (%s), which is in a container", dir, m, f.comm(m))
		}
	}
	return nil
}
