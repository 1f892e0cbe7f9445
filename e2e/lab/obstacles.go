package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// InTheWayError says what keeps a lab from starting.
type InTheWayError struct {
	RunDir string
	Things []string // each a phrase: "network namespace /run/netns/demo-node-a"
}

func (e *InTheWayError) Error() string {
	return "lab: in the way: " + strings.Join(e.Things, "; ")
}

// inTheWay looks for everything that this lab would make and that is there already. Nothing is
// ever reused: a leftover may hold processes and programs of another version.
func (l *Lab) inTheWay() error {
	things, err := l.runDirInTheWay()
	if err != nil {
		return err
	}
	names, err := filepath.Glob(filepath.Join(netnsDir, l.prefix+"-*"))
	if err != nil {
		return fmt.Errorf("lab: list network namespaces: %w", err)
	}
	for _, n := range names {
		things = append(things, "network namespace "+n)
	}
	if _, err := os.Stat(l.cgroup); err == nil {
		things = append(things, "cgroup "+l.cgroup)
	}
	if len(things) > 0 {
		return &InTheWayError{RunDir: l.runDir, Things: things}
	}
	return nil
}

func (l *Lab) runDirInTheWay() ([]string, error) {
	entries, err := os.ReadDir(l.runDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("lab: run directory: %w", err)
	}
	s, err := readState(l.runDir)
	switch {
	case err == nil && s.Owner.alive(s.BootID):
		return []string{fmt.Sprintf("run directory %s, in use by running process %d", l.runDir, s.Owner.PID)}, nil
	case err == nil:
		return []string{"run directory " + l.runDir + ", kept or left over by an earlier run"}, nil
	case len(entries) > 0:
		return []string{"run directory " + l.runDir + ", which is not empty and not a lab's"}, nil
	}
	return nil, nil
}
