package cluster

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// stopLimit is how long processes may take to end when asked, and again when killed.
const stopLimit = 15 * time.Second

// stopDaemons ends dockerd, its containerd and their shims: the processes whose command line names our folder.
func stopDaemons(dataRoot string) error {
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		deadline := time.Now().Add(stopLimit)
		asked := map[int]bool{}
		for {
			pids, err := daemons("/proc", dataRoot)
			if err != nil || len(pids) == 0 {
				return err
			}
			for _, pid := range pids {
				if !asked[pid] {
					asked[pid] = true
					_ = unix.Kill(pid, signal) // it may have ended
				}
			}
			if time.Now().After(deadline) {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	return errors.New("cluster: dockerd or containerd does not end, not even when killed")
}

// daemons returns the processes that docker consists of, recognised by their programs and by our folder
// in their arguments.
func daemons(proc, dataRoot string) ([]int, error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, fmt.Errorf("cluster: list the processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join(proc, e.Name(), "cmdline"))
		if err != nil || len(line) == 0 { // ended, or a zombie
			continue
		}
		if isDaemon(strings.Split(strings.TrimRight(string(line), "\x00"), "\x00"), dataRoot) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func isDaemon(args []string, dataRoot string) bool {
	programs := []string{"dockerd", "containerd", "containerd-shim", "containerd-shim-runc-v2", "docker-proxy"}
	if !slices.Contains(programs, filepath.Base(args[0])) {
		return false
	}
	return slices.ContainsFunc(args[1:], func(arg string) bool {
		return strings.Contains(arg, runDir+"/") || strings.Contains(arg, dataRoot+"/")
	})
}

// removeCgroups removes the nodes' control groups of every hierarchy, and ends what still runs in them.
func removeCgroups(root string) error {
	var tops []string
	for _, pattern := range []string{cgroupParent(), "*/" + cgroupParent()} { // v2; v1 and hybrid
		matches, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return fmt.Errorf("cluster: %w", err)
		}
		tops = append(tops, matches...)
	}
	deadline := time.Now().Add(stopLimit)
	for {
		var errs []error
		for _, top := range tops {
			errs = append(errs, removeCgroup(top))
		}
		err := errors.Join(errs...)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// removeCgroup kills what is in a control group and removes it, from the leaves up.
func removeCgroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("cluster: control groups: %w", err)
	}
	slices.Reverse(dirs)
	for _, d := range dirs {
		killMembers(d)
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cluster: control group: %w", err)
		}
	}
	return nil
}

func killMembers(cgroup string) {
	content, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
	if err != nil {
		return // it is gone
	}
	for line := range strings.FieldsSeq(string(content)) {
		if pid, err := strconv.Atoi(line); err == nil && pid > 1 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// unmountBelow unmounts everything at or below those paths, the innermost first.
func unmountBelow(paths ...string) error {
	content, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("cluster: list the mounts: %w", err)
	}
	for _, target := range mountsBelow(content, paths) {
		err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("cluster: unmount %s: %w", target, err)
		}
	}
	return nil
}

// mountsBelow returns the mount points of a mountinfo file at or below the paths, in reverse order of mounting.
func mountsBelow(mountinfo []byte, paths []string) []string {
	var targets []string
	for lines := bufio.NewScanner(bytes.NewReader(mountinfo)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		target := strings.ReplaceAll(fields[4], `\040`, " ")
		for _, p := range paths {
			if target == p || strings.HasPrefix(target, p+"/") {
				targets = append(targets, target)
				break
			}
		}
	}
	slices.Reverse(targets)
	return targets
}
