package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// sysctlMinimums are settings of the whole machine that two nodes need: each runs systemd, containerd and a kubelet,
// which watch files.
func sysctlMinimums() map[string]int {
	return map[string]int{"fs/inotify/max_user_instances": 1024, "fs/inotify/max_user_watches": 131072}
}

// raiseSysctls raises what is too low. before is told the old value ahead of the change.
func raiseSysctls(root string, before func(name, value string) error) error {
	for name, least := range sysctlMinimums() {
		path := filepath.Join(root, name)
		content, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("cluster: sysctl: %w", err)
		}
		old := strings.TrimSpace(string(content))
		if n, err := strconv.Atoi(old); err == nil && n >= least {
			continue
		}
		if err := before(name, old); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(strconv.Itoa(least)), 0o644); err != nil {
			return fmt.Errorf("cluster: sysctl: %w", err)
		}
	}
	return nil
}

// restoreSysctls puts old values back, unless somebody else changed the setting since.
func restoreSysctls(root string, old map[string]string) error {
	var errs []error
	for name, value := range old {
		path := filepath.Join(root, name)
		content, err := os.ReadFile(path)
		if err != nil {
			errs = append(errs, fmt.Errorf("cluster: sysctl: %w", err))
			continue
		}
		if strings.TrimSpace(string(content)) != strconv.Itoa(sysctlMinimums()[name]) {
			continue
		}
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			errs = append(errs, fmt.Errorf("cluster: sysctl: %w", err))
		}
	}
	return errors.Join(errs...)
}
