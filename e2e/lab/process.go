package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// process names a process for good: the kernel reuses a process id, but not with the same start.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot, field 22 of /proc/PID/stat
	Name  string `json:"name"`
}

func processByPID(pid int, name string) (process, error) {
	start, err := startTime(pid)
	if err != nil {
		return process{}, err
	}
	return process{PID: pid, Start: start, Name: name}, nil
}

func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("start time of process %d: %w", pid, err)
	}
	// The second field is the command in brackets, and may itself contain brackets and blanks.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("start time of process %d: unexpected %q", pid, b)
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}

// alive reports whether this very process exists, and is not just waiting to be reaped.
func (p process) alive(boot string) bool {
	if boot != bootID() {
		return false
	}
	start, err := startTime(p.PID)
	return err == nil && start == p.Start && !zombie(p.PID)
}

func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	rest := strings.TrimSpace(string(b[bytes.LastIndexByte(b, ')')+1:]))
	return strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")
}

// kill ends the process if it is still the same one. The descriptor is taken before the check, so
// that the id cannot change hands in between.
func (p process) kill() error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d (%s): %w", p.PID, p.Name, err)
	}
	defer unix.Close(fd)
	if start, err := startTime(p.PID); err != nil || start != p.Start {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d (%s): %w", p.PID, p.Name, err)
	}
	return nil
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
