// Package cniconf keeps the CNI plugin installed on a node: its binary where the runtime looks for plugins, and its
// entry in the list of plugins that the runtime uses.
//
// A runtime takes, of the .conflist, .conf and .json files in its folder, the one that sorts first. That file belongs to
// whoever makes the pods' network, and is rewritten by them when they please. Our plugin is an entry
// at the end of its list; everything else in it stays as it is, to the byte. Where the file cannot be edited (shadow.go),
// a generated one takes its place. Entries in files that are no longer first are left, since they do nothing
// there and are right when the file comes first again.
//
// # Rewrites
//
// A rewrite is noticed by inotify and repaired within milliseconds; a slow look every few seconds is there for what
// inotify does not tell. The runtime itself takes some milliseconds to read a new file. Pods that start in between start without
// the plugin: the agent enrols those as it does pods that ran before it.
//
// # Uninstalling
//
// First the entries, then the binary, and between them a pause (Settle) in which the runtime reads its configuration
// anew. An ADD that began with the old list finds the plugin until then, and the agent must still answer it (with "not
// to be enrolled, being uninstalled") until Uninstall has returned. An ADD with an old list after that fails for
// want of the binary, and kubelet repeats it with the new list: nothing starts half configured. For DEL, containerd uses the
// list as it is now, while CRI-O uses the one that it remembers of the pod's ADD and fails when the
// binary is gone, so that the pod never ends: with CRI-O, KeepBinary leaves the binary, whose DEL succeeds
// without an agent.
package cniconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// PluginName is the plugin's type in a list and the name of its binary.
const PluginName = "culvert-cni"

const (
	// patience is how long a file that is not valid is taken to be half written, before the next one is looked at.
	patience = time.Second
	// defaultSettle is how long a runtime may take to read a changed list.
	defaultSettle = time.Second
	// leftoverAge is from when on a temporary file is nobody's: another agent may be about to finish here.
	leftoverAge = time.Minute
)

// Config is what the plugin's entry says.
type Config struct {
	Socket   string        // where the agent listens, as the runtime sees it
	Timeout  time.Duration // how long an ADD waits for the agent; 0 is the plugin's default
	FailOpen bool          // whether pods start unenforced while the agent is away
}

// entry returns the plugin's entry in a list.
func (c Config) entry() ([]byte, error) {
	e := struct {
		Type     string `json:"type"`
		Socket   string `json:"socket"`
		Timeout  string `json:"timeout,omitempty"`
		FailOpen bool   `json:"failOpen"`
	}{Type: PluginName, Socket: c.Socket, FailOpen: c.FailOpen}
	if c.Timeout > 0 {
		e.Timeout = c.Timeout.String()
	}
	return json.Marshal(e)
}

// Installer installs the plugin and removes it. Its fields are not changed once it is in use. The methods may
// be called concurrently.
type Installer struct {
	ConfDir string // of the runtime: /etc/cni/net.d
	BinDir  string // of the runtime: /opt/cni/bin
	Plugin  string // the binary to install
	Config  Config
	Logger  *slog.Logger

	// KeepBinary is asked when uninstalling, and leaves the binary; see the package's comment. May be nil.
	KeepBinary func() bool
	// Settle is the pause between removing entries and binary: 0 is a second, negative none.
	Settle time.Duration

	mu          sync.Mutex
	uninstalled bool
	problem     error                // of the last pass
	logged      string               // the last problem that was logged
	installed   fs.FileInfo          // the binary, as it was when it was compared
	invalid     map[string]time.Time // files that are not valid, and since when
	leftovers   bool                 // temporary files of earlier processes have been removed
}

// outcome is what a pass has done.
type outcome struct {
	wrote bool
	again time.Duration // when to look again without an event; 0: no hurry
}

// pass brings everything in order once. What is wrong is remembered for Installed and logged when it changes.
func (i *Installer) pass() outcome {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.uninstalled {
		return outcome{}
	}
	out, err := i.ensure()
	i.problem = explain(err)
	if errors.Is(err, errUnsettled) {
		out.again = retryUnsettled // no reason to say anything yet
		return out
	}
	i.report()
	return out
}

// report logs what is wrong, once.
func (i *Installer) report() {
	switch {
	case i.problem == nil && i.logged != "":
		i.Logger.Info("CNI plugin is installed", "folder", i.ConfDir)
		i.logged = ""
	case i.problem != nil && i.logged != i.problem.Error():
		i.logged = i.problem.Error()
		i.Logger.Warn("CNI plugin is not installed", "reason", i.problem)
	}
}

// explain adds to an error what an administrator can do about it.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EROFS), errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: the folder has to be mounted writable, and the agent to run as root", err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: make room on the node", err)
	}
	return err
}

// ensure installs the binary first: an entry without it would let no pod start.
func (i *Installer) ensure() (outcome, error) {
	for _, dir := range []string{i.BinDir, i.ConfDir} {
		if _, err := os.Stat(dir); err != nil {
			return outcome{again: retryMissing}, fmt.Errorf("waiting for the folder: %w", err)
		}
	}
	unlock, err := lockFolder(i.ConfDir)
	if err != nil {
		return outcome{}, err
	}
	defer unlock()
	if !i.leftovers {
		i.leftovers = true
		if err := errors.Join(removeTemps(i.ConfDir, "", leftoverAge), removeTemps(i.BinDir, PluginName, leftoverAge)); err != nil {
			i.Logger.Warn("left-over temporary files stay", "error", err)
		}
	}
	if err := i.ensureBinary(); err != nil {
		return outcome{}, fmt.Errorf("plugin binary: %w", err)
	}
	return i.ensureEntry()
}

func (i *Installer) ensureBinary() error {
	path := filepath.Join(i.BinDir, PluginName)
	now, err := os.Lstat(path)
	if err == nil && i.installed != nil && os.SameFile(now, i.installed) && now.Mode() == i.installed.Mode() &&
		now.Size() == i.installed.Size() && now.ModTime().Equal(i.installed.ModTime()) {
		return nil
	}
	wrote, err := installBinary(i.Plugin, i.BinDir)
	if err != nil {
		return err
	}
	if wrote {
		i.Logger.Info("CNI plugin binary written", "file", path)
	}
	i.installed, err = os.Lstat(path)
	return err
}

// ensureEntry puts our entry into the file that the runtime uses.
func (i *Installer) ensureEntry() (outcome, error) {
	content, err := i.Config.entry()
	if err != nil {
		return outcome{}, err
	}
	files, err := scan(i.ConfDir)
	if err != nil {
		return outcome{}, err
	}
	target, err := i.choose(files)
	if errors.Is(err, errUnsettled) {
		return outcome{}, err
	}
	if target == nil {
		// What a shadow stands for is gone.
		removed, removeErr := i.removeShadows(files, nil)
		return outcome{wrote: removed}, errors.Join(fmt.Errorf("waiting for a CNI configuration in %s", i.ConfDir), err, removeErr)
	}
	wrote, err := i.write(target, files, content)
	if err != nil {
		return outcome{wrote: wrote}, fmt.Errorf("%s: %w", target.name, err)
	}
	// Only now, when the file that counts is in order: a shadow was in force until here.
	removed, err := i.removeShadows(files, target)
	return outcome{wrote: wrote || removed}, err
}

// choose returns the first valid file that is not a shadow. A file before it that is not valid may be half written:
// then the error is errUnsettled, until it has been so for a while. With no file at all, the error tells of the
// files that are not valid, if there are any.
func (i *Installer) choose(files []*file) (target *file, err error) {
	invalid := map[string]time.Time{}
	defer func() { i.invalid = invalid }()
	for _, f := range files {
		if f.shadow() != "" {
			continue
		}
		if f.err == nil {
			return f, nil
		}
		since, known := i.invalid[f.name]
		if !known {
			since = time.Now()
		}
		invalid[f.name] = since
		if time.Since(since) < patience {
			return nil, fmt.Errorf("%s %w: %w", f.name, errUnsettled, f.err)
		}
		err = errors.Join(err, fmt.Errorf("%s: %w", f.name, f.err))
	}
	return nil, err
}

func (i *Installer) write(target *file, files []*file, content []byte) (bool, error) {
	path := filepath.Join(i.ConfDir, target.name)
	if target.editable() {
		if target.list.chained(content) {
			return false, nil
		}
		err := edit(path, target.text, func(text []byte) ([]byte, error) { return chain(text, content) })
		if err == nil {
			i.Logger.Info("CNI plugin chained", "file", path)
		}
		return true, err
	}
	shadow := i.shadowPath(target)
	text, err := shadowText(target, content)
	if err != nil {
		return false, err
	}
	for _, f := range files {
		if f.name == filepath.Base(shadow) {
			if string(f.text) == string(text) {
				return false, nil
			}
			if f.shadow() == "" {
				return false, fmt.Errorf("cannot be chained: %s is there and was not made by this agent", f.name)
			}
		}
	}
	if err := put(shadow, text, path); err != nil {
		return true, err
	}
	i.Logger.Info("CNI plugin chained", "file", shadow, "instead of", path)
	return true, nil
}

func (i *Installer) shadowPath(f *file) string { return filepath.Join(i.ConfDir, shadowName(f.name)) }

func shadowText(f *file, content []byte) ([]byte, error) {
	if f.list != nil {
		return shadowOfList(f.name, f.text, content)
	}
	return shadowOfSingle(f.name, f.text, content)
}

// removeShadows removes generated files that do not stand for the target.
func (i *Installer) removeShadows(files []*file, target *file) (bool, error) {
	removed := false
	for _, f := range files {
		if f.shadow() == "" || target != nil && !target.editable() && f.name == shadowName(target.name) {
			continue
		}
		path := filepath.Join(i.ConfDir, f.name)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, err
		}
		i.Logger.Info("generated CNI configuration removed", "file", path)
		removed = true
	}
	return removed, nil
}

// Installed looks whether the plugin is in place now, and says what is missing.
func (i *Installer) Installed() (bool, string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.uninstalled {
		return false, "uninstalled"
	}
	if err := i.verify(); err != nil {
		if i.problem != nil {
			err = i.problem
		}
		return false, err.Error()
	}
	return true, ""
}

func (i *Installer) verify() error {
	if !sameBinary(i.Plugin, filepath.Join(i.BinDir, PluginName)) {
		return fmt.Errorf("%s has no current %s", i.BinDir, PluginName)
	}
	content, err := i.Config.entry()
	if err != nil {
		return err
	}
	files, err := scan(i.ConfDir)
	if err != nil {
		return err
	}
	for _, f := range files {
		switch {
		case f.err != nil:
			continue
		case f.list == nil || !f.list.chained(content):
			return fmt.Errorf("%s is first, and is not chained", f.name)
		}
		return nil
	}
	return fmt.Errorf("no CNI configuration in %s", i.ConfDir)
}
