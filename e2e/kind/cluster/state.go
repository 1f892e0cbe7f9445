package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// state is what up changed on the machine. It is written before each change, so that down, possibly of another
// process, finds what a killed up left behind.
type state struct {
	IPFamily string            // of the cluster
	Image    string            // of the nodes
	Tools    string            // archive of the tools image that the nodes have
	Ready    bool              // up came to its end
	Sysctls  map[string]string // name to the value before
	Folders  []string          // made for docker, which are to go if they are empty
	DataRoot string            // of our docker daemon
}

func statePath() string { return filepath.Join(runDir, "state.json") }

// loadState returns nil if there is no cluster of ours.
func loadState() (*state, error) {
	content, err := os.ReadFile(statePath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cluster: read the state: %w", err)
	}
	s := new(state)
	if err := json.Unmarshal(content, s); err != nil {
		return nil, fmt.Errorf("cluster: read %s: %w", statePath(), err)
	}
	return s, nil
}

func (s *state) save() error {
	content, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return fmt.Errorf("cluster: state: %w", err)
	}
	unfinished := statePath() + ".new"
	if err := os.WriteFile(unfinished, content, 0o600); err != nil {
		return fmt.Errorf("cluster: write the state: %w", err)
	}
	if err := os.Rename(unfinished, statePath()); err != nil {
		return fmt.Errorf("cluster: write the state: %w", err)
	}
	return nil
}
