package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

const stateFile = "lab.json"

// state is the record of what exists, as it stands in the run directory. Things are entered before
// they are made and stay until the whole lab goes, so an entry means "may exist".
type state struct {
	Prefix     string    `json:"prefix"`
	BootID     string    `json:"bootID"` // process ids mean nothing after a reboot
	Owner      process   `json:"owner"`  // who built the lab
	CgroupRoot string    `json:"cgroupRoot"`
	Cgroups    []string  `json:"cgroups"` // parents first
	Namespaces []string  `json:"namespaces"`
	Processes  []process `json:"processes"`
	NetnsDir   bool      `json:"netnsDir"` // /run/netns was made for this lab
}

// record is the state together with the file that it is kept in.
type record struct {
	runDir string
	mu     sync.Mutex
	state  state
	closed bool
}

func newRecord(runDir, prefix, cgroupRoot string) (*record, error) {
	self, err := processByPID(os.Getpid(), "owner")
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	r := &record{runDir: runDir, state: state{Prefix: prefix, BootID: bootID(), Owner: self, CgroupRoot: cgroupRoot}}
	return r, r.update(func(*state) {})
}

// update changes the state and replaces the file, whole or not at all.
func (r *record) update(change func(*state)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errors.New("lab: already closed")
	}
	change(&r.state)
	return r.write()
}

func (r *record) write() error {
	b, err := json.MarshalIndent(r.state, "", "  ")
	if err != nil {
		return fmt.Errorf("lab: encode state: %w", err)
	}
	path := filepath.Join(r.runDir, stateFile)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return fmt.Errorf("lab: write state: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("lab: write state: %w", err)
	}
	return nil
}

func (r *record) addProcess(p process) error {
	return r.update(func(s *state) { s.Processes = append(s.Processes, p) })
}

// removeProcess forgets a process that was waited for. That the lab is gone by then is fine.
func (r *record) removeProcess(p process) {
	_ = r.update(func(s *state) {
		s.Processes = slices.DeleteFunc(s.Processes, func(q process) bool { return q == p })
	})
}

func (r *record) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return tearDown(r.runDir, &r.state)
}

func readState(runDir string) (*state, error) {
	b, err := os.ReadFile(filepath.Join(runDir, stateFile))
	if err != nil {
		return nil, fmt.Errorf("lab: read state: %w", err)
	}
	s := new(state)
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("lab: state file of %s: %w", runDir, err)
	}
	return s, nil
}
