package cniconf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/time/rate"
)

const (
	// pollInterval is how often everything is looked at without a reason.
	pollInterval = 5 * time.Second
	// retryUnsettled is how soon after a half-written file one looks again, should no event come.
	retryUnsettled = 20 * time.Millisecond
	// retryMissing is how often one looks whether a folder is there, or where inotify is not to be had.
	retryMissing = 200 * time.Millisecond
	// writesPerSecond and writesBurst bound the rewriting when somebody undoes it each time.
	writesPerSecond = 20
	writesBurst     = 50
)

// Run installs the plugin and keeps it in place until ctx ends; then it leaves it there and returns nil. What is
// wrong on the node (a folder that is missing or read-only, a list that cannot be chained) is logged, told by
// Installed, and tried again; an error is something that waiting cannot mend.
func (i *Installer) Run(ctx context.Context) error {
	if err := i.check(); err != nil {
		return fmt.Errorf("CNI plugin: %w", err)
	}
	w := newWatch(i)
	defer w.close()
	limit := rate.NewLimiter(writesPerSecond, writesBurst)
	complain := rate.Sometimes{Interval: time.Minute}
	for ctx.Err() == nil {
		w.follow()
		out := i.pass()
		if out.wrote && !limit.Allow() {
			complain.Do(func() {
				i.Logger.Warn("somebody keeps undoing the CNI configuration", "folder", i.ConfDir)
			})
			_ = limit.Wait(ctx)
		}
		w.wait(ctx, out.again)
	}
	return nil
}

func (i *Installer) check() error {
	if i.Logger == nil {
		return errors.New("no logger")
	}
	for name, path := range map[string]string{"ConfDir": i.ConfDir, "BinDir": i.BinDir, "Plugin": i.Plugin, "Socket": i.Config.Socket} {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%s %q is no absolute path", name, path)
		}
	}
	info, err := os.Stat(i.Plugin)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file", i.Plugin)
	}
	return nil
}

// watch waits for changes of the two folders.
type watch struct {
	installer *Installer
	notify    *fsnotify.Watcher // nil if there is none to be had
	followed  map[string]fs.FileInfo
}

func newWatch(i *Installer) *watch {
	w := &watch{installer: i, followed: map[string]fs.FileInfo{}}
	var err error
	if w.notify, err = fsnotify.NewWatcher(); err != nil {
		i.Logger.Warn("no inotify (fs.inotify.max_user_instances?): looking several times a second", "error", err)
		w.notify = nil
	}
	return w
}

func (w *watch) close() {
	if w.notify != nil {
		_ = w.notify.Close()
	}
}

// follow watches both folders, also when they have been made anew. It comes before looking into them.
func (w *watch) follow() {
	if w.notify == nil {
		return
	}
	for _, dir := range []string{w.installer.ConfDir, w.installer.BinDir} {
		now, err := os.Stat(dir)
		known := w.followed[dir]
		if err == nil && known != nil && os.SameFile(now, known) && slices.Contains(w.notify.WatchList(), dir) {
			continue
		}
		if known != nil {
			_ = w.notify.Remove(dir)
			delete(w.followed, dir)
		}
		if err == nil && w.notify.Add(dir) == nil {
			w.followed[dir] = now
		}
	}
}

// wait waits for a change, or until it is time to look anyway.
func (w *watch) wait(ctx context.Context, again time.Duration) {
	interval := pollInterval
	if again > 0 {
		interval = again
	} else if len(w.followed) < 2 {
		interval = retryMissing
	}
	timer := time.NewTimer(interval)
	defer timer.Stop()
	var events chan fsnotify.Event
	var failures chan error
	if w.notify != nil {
		events, failures = w.notify.Events, w.notify.Errors
	}
	for {
		select {
		case e := <-events:
			if !w.concerns(e) {
				continue
			}
			w.settle()
			return
		case err := <-failures: // an overflow, for one: events are lost, and a look is due
			w.installer.Logger.Debug("watching the CNI configuration", "error", err)
			return
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// concerns reports whether an event can be of a file that matters.
func (w *watch) concerns(e fsnotify.Event) bool {
	if strings.HasSuffix(e.Name, tempSuffix) {
		return false
	}
	if filepath.Dir(e.Name) == w.installer.BinDir && w.installer.BinDir != w.installer.ConfDir {
		return filepath.Base(e.Name) == PluginName
	}
	return true
}

// settle drops events that are there already: the look that follows covers them.
func (w *watch) settle() {
	for w.notify != nil {
		select {
		case <-w.notify.Events:
		default:
			return
		}
	}
}
