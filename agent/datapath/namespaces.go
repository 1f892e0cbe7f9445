package datapath

import (
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// findNetns looks for network namespaces by their inodes, among those of processes, those that are mounted somewhere,
// and those that a process holds open. Not all need be found: a namespace may be kept by its sockets alone. The files are
// the caller's.
func findNetns(wanted map[uint64]bool) map[uint64]*os.File {
	s := netnsSearch{wanted: wanted, found: map[uint64]*os.File{}}
	for _, places := range netnsPlaces() {
		for _, path := range places() {
			if len(s.found) == len(wanted) {
				return s.found
			}
			s.look(path)
		}
	}
	return s.found
}

func netnsPlaces() []func() []string { return []func() []string{processNetns, mountedNetns, heldNetns} }

type netnsSearch struct {
	wanted map[uint64]bool // nil: all
	found  map[uint64]*os.File
}

func (s *netnsSearch) look(path string) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || !s.wants(st.Ino) || s.found[st.Ino] != nil {
		return
	}
	f, err := os.Open(path)
	if err != nil {
		return
	}
	// What is at the path may have changed, and inodes are numbers of other file systems as well.
	if unix.Fstat(int(f.Fd()), &st) != nil || !s.wants(st.Ino) || s.found[st.Ino] != nil || !isNetns(f) {
		f.Close()
		return
	}
	s.found[st.Ino] = f
}

func (s *netnsSearch) wants(inode uint64) bool { return s.wanted == nil || s.wanted[inode] }

func isNetns(f *os.File) bool {
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	return err == nil && kind == unix.CLONE_NEWNET
}

func processNetns() []string {
	paths, _ := filepath.Glob("/proc/[0-9]*/ns/net") // fails for a wrong pattern only
	return paths
}

// mountedNetns also asks init, whose mounts are the host's.
func mountedNetns() []string {
	var paths []string
	for _, process := range []string{"self", "1"} {
		b, err := os.ReadFile(filepath.Join("/proc", process, "mountinfo"))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			// proc(5): "id parent major:minor root mount-point ..."; the root of such a mount is "net:[inode]".
			if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[3], "net:[") {
				paths = append(paths, filepath.Join("/proc", process, "root", f[4]))
			}
		}
	}
	return paths
}

func heldNetns() []string {
	all, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	var paths []string
	for _, path := range all {
		if to, err := os.Readlink(path); err == nil && strings.HasPrefix(to, "net:[") {
			paths = append(paths, path)
		}
	}
	return paths
}
