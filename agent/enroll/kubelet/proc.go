package kubelet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
)

func (f *finder) pids() ([]int, error) {
	dir, err := os.Open(f.proc)
	if err != nil {
		return nil, fmt.Errorf("processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("processes: %w", err)
	}
	var pids []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// status returns a line of /proc/PID/status.
func (f *finder) status(pid int, key string) string {
	b, _ := os.ReadFile(f.path(pid, "status")) // it may have ended
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, key); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// startTime tells a process from another that has its number later.
func (f *finder) startTime(pid int) (string, error) {
	b, err := os.ReadFile(f.path(pid, "stat"))
	if err != nil {
		return "", err
	}
	// proc(5): "pid (comm) state ppid ...", start time is the 22nd; comm may hold anything.
	stat := string(b)
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return "", errors.New("its state cannot be read")
	}
	return fields[19], nil
}

// ancestors are the processes that a process was started by, without init. The chain is short, and never a circle.
func (f *finder) ancestors(pid int) map[int]bool {
	all := map[int]bool{}
	for {
		parent, err := strconv.Atoi(f.status(pid, "PPid:"))
		if err != nil || parent <= 1 || all[parent] {
			return all
		}
		all[parent] = true
		pid = parent
	}
}

func owner(i fs.FileInfo) (uint32, bool) {
	st, ok := i.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return st.Uid, true
}
