package datapath

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// bpffsMountPoint is where BPF file systems are mounted by convention; systemd does it at boot.
const bpffsMountPoint = "/sys/fs/bpf"

// prepareBPFFS makes the folder for our pins. On a host where nobody mounted the BPF file system in its usual place,
// it does that.
func prepareBPFFS(dir string) error {
	usual := dir == bpffsMountPoint || strings.HasPrefix(dir, bpffsMountPoint+"/")
	if usual && checkFS(bpffsMountPoint, unix.BPF_FS_MAGIC, "bpf") != nil {
		if err := unix.Mount("bpf", bpffsMountPoint, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
			return fmt.Errorf("mount BPF file system on %s: %w", bpffsMountPoint, err)
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("pin folder: %w", err)
	}
	if err := checkFS(dir, unix.BPF_FS_MAGIC, "bpf"); err != nil {
		return fmt.Errorf("%w (mount one with: mount -t bpf bpf %s)", err, dir)
	}
	return nil
}

// findCgroup checks the folder, or finds the one where cgroup2 is mounted: /sys/fs/cgroup, or below it on hosts that
// use both versions.
func findCgroup(dir string) (string, error) {
	if dir != "" {
		return dir, checkFS(dir, unix.CGROUP2_SUPER_MAGIC, "cgroup2")
	}
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("mounts: %w", err)
	}
	defer mounts.Close()
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		// proc(5): "id parent major:minor root mount-point options [optional...] - type source ..."
		mount, kind, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(mount)
		if ok && len(fields) > 4 && strings.HasPrefix(kind, "cgroup2 ") {
			return filepath.Clean(fields[4]), nil
		}
	}
	return "", errors.New("no cgroup2 file system is mounted (mount one with: mount -t cgroup2 none DIR, and name it with --cgroup)")
}

func checkFS(dir string, magic int64, kind string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("%s %s: %w", kind, dir, err)
	}
	if int64(st.Type) != magic {
		return fmt.Errorf("%s: not a %s file system", dir, kind)
	}
	return nil
}
