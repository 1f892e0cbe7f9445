package cniconf

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// uninstallPatience is how long Uninstall waits for a file that somebody is writing.
const uninstallPatience = 2 * time.Second

// Uninstall removes our entries from all files, the generated files, and then the binary. A file that nobody changed
// in another way is, to the byte, what it was before. Run does nothing any more from here on; an agent in another
// process would install the plugin again. Where an entry cannot be removed, the binary stays, because without it
// no pod could start; Uninstall may be called again.
func (i *Installer) Uninstall() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.uninstalled = true
	changed, err := i.removeEntries()
	if err != nil {
		return fmt.Errorf("CNI plugin not uninstalled: %w", explain(err))
	}
	if changed {
		time.Sleep(i.settle())
	}
	if i.KeepBinary != nil && i.KeepBinary() {
		return nil
	}
	if err := removeBinary(i.BinDir); err != nil {
		return fmt.Errorf("CNI plugin binary not removed: %w", explain(err))
	}
	return nil
}

func (i *Installer) settle() time.Duration {
	if i.Settle == 0 {
		return defaultSettle
	}
	return max(i.Settle, 0)
}

// removeEntries goes over the files until none has anything of ours.
func (i *Installer) removeEntries() (changed bool, err error) {
	for end := time.Now().Add(uninstallPatience); ; time.Sleep(retryUnsettled) {
		did, err := i.cleanAll()
		changed = changed || did
		if errors.Is(err, fs.ErrNotExist) {
			return changed, nil // no folder, no entries
		}
		if !errors.Is(err, errUnsettled) || time.Now().After(end) {
			return changed, err
		}
	}
}

// cleanAll goes over the files once.
func (i *Installer) cleanAll() (changed bool, err error) {
	unlock, err := lockFolder(i.ConfDir)
	if err != nil {
		return false, err
	}
	defer unlock()
	files, err := scan(i.ConfDir)
	if err != nil {
		return false, err
	}
	for _, f := range files {
		did, cleanErr := i.clean(f)
		changed = changed || did
		err = errors.Join(err, cleanErr)
	}
	if err != nil {
		return changed, err
	}
	return changed, removeTemps(i.ConfDir, "", 0)
}

// clean removes what is ours of one file.
func (i *Installer) clean(f *file) (bool, error) {
	path := filepath.Join(i.ConfDir, f.name)
	switch {
	case f.shadow() != "":
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	case f.link:
		return false, nil // never written through
	case f.err != nil && bytes.Contains(f.text, []byte(PluginName)):
		return false, fmt.Errorf("%s %w, and is not valid (%w)", path, errUnsettled, f.err)
	case f.list == nil || len(f.list.ours()) == 0:
		return false, nil
	default:
		if err := edit(path, f.text, unchain); err != nil {
			return false, fmt.Errorf("%s: %w", path, err)
		}
	}
	i.Logger.Info("CNI plugin removed", "file", path)
	return true, nil
}
