package file

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/policy"
)

const (
	defaultDebounce = 20 * time.Millisecond
	// patience bounds, in debounces, how long a steady stream of events can put off a scan. A folder that was
	// gone must also be quiet for that long before it counts: an empty one that is about to be filled again
	// must not delete everything.
	patience = 10
	// checkInterval: how often the folder's own identity is looked at, for changes that raise no event.
	checkInterval = 500 * time.Millisecond
	// rescanEvery counts checks between full scans, for file systems that raise no events at all.
	rescanEvery = 20
)

// Options of a Source. The zero value is usable.
type Options struct {
	Logger        *slog.Logger  // default: slog.Default()
	Node          string        // whose pods are local, with those that name no node
	RootNamespace string        // of the mesh, for messages; default policy.DefaultRootNamespace
	Debounce      time.Duration // how long a folder must be quiet before it is read; default 20 ms
}

// Source follows a folder of manifests: its *.yaml, *.yml and *.json, without subfolders and temporary files of editors.
type Source struct {
	dir      string
	node     string
	root     string
	log      *slog.Logger
	debounce time.Duration
}

var _ source.Source = (*Source)(nil)

// New returns a Source for the folder. Nothing is read before Run.
func New(dir string, o Options) *Source {
	s := &Source{dir: filepath.Clean(dir), node: o.Node, root: cmp.Or(o.RootNamespace, policy.DefaultRootNamespace), log: o.Logger, debounce: o.Debounce}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.debounce <= 0 {
		s.debounce = defaultDebounce
	}
	return s
}

// Run implements source.Source. It fails if the folder cannot be read at the start; whatever happens to the
// folder later is a Problem in the Snapshots, and leaves the last good state in force.
func (s *Source) Run(ctx context.Context, publish func(*source.Snapshot)) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch config folder %s: %w", s.dir, err)
	}
	defer watcher.Close()
	f := &follower{Source: s, watcher: watcher, folder: newFolder(s.dir, s.root, s.log), publish: publish, touched: map[string]bool{}}
	if !f.attach() {
		return fmt.Errorf("config folder %s: %w", s.dir, f.attachErr)
	}
	f.folder.scan(f.isTouched)
	if f.folder.err != nil {
		return fmt.Errorf("config folder: %w", f.folder.err)
	}
	publish(source.NewSnapshot(f.node, f.folder.contents()))
	f.follow(ctx)
	return nil
}

// follower is the state of one Run; all of it belongs to Run's goroutine.
type follower struct {
	*Source
	watcher   *fsnotify.Watcher
	watched   os.FileInfo // the folder that the watch is on, or nil
	attachErr error
	folder    *folder
	publish   func(*source.Snapshot)

	touched    map[string]bool
	everything bool      // events were lost: trust no stamp
	full       bool      // look at all files, not only at those touched
	first      time.Time // of the events that wait to be handled
	timer      <-chan time.Time
}

// attach puts the watch on the folder that has the name now, which may be another than before.
func (f *follower) attach() bool {
	info, err := os.Stat(f.dir)
	if err == nil && !info.IsDir() {
		err = errors.New("is not a folder")
	}
	if err == nil && f.watched != nil && os.SameFile(info, f.watched) {
		return true
	}
	if f.watched != nil {
		// A watch that the kernel has already removed is what is wanted.
		_ = f.watcher.Remove(f.dir)
		f.watched = nil
	}
	if err == nil {
		err = f.watcher.Add(f.dir)
	}
	if f.attachErr = err; err != nil {
		return false
	}
	f.watched, f.everything = info, true
	return true
}

func (f *follower) follow(ctx context.Context) {
	check := time.NewTicker(checkInterval)
	defer check.Stop()
	for checks := 1; ; {
		select {
		case <-ctx.Done():
			return
		case event, ok := <-f.watcher.Events:
			if !ok {
				return
			}
			f.note(event)
		case err, ok := <-f.watcher.Errors:
			if !ok {
				return
			}
			f.log.Warn("config folder: events were lost, reading all of it", "folder", f.dir, "error", err)
			f.everything = true
			f.arm()
		case <-check.C:
			checks++
			f.check(checks%rescanEvery == 0)
		case <-f.timer:
			f.update()
		}
	}
}

func (f *follower) note(event fsnotify.Event) {
	if filepath.Clean(event.Name) == f.dir && event.Has(fsnotify.Remove|fsnotify.Rename) {
		_ = f.watcher.Remove(f.dir) // a renamed folder would go on being watched under its new name
		f.watched, f.full = nil, true
	}
	name := filepath.Base(event.Name)
	f.touched[name] = true
	if strings.HasPrefix(name, "..") {
		f.full = true // a mounted ConfigMap: all its files are links through one that changed
	}
	f.arm()
}

// check notices a folder that was replaced, is gone, or is back.
func (f *follower) check(rescan bool) {
	before := f.watched
	f.attach()
	if f.watched != before || rescan {
		f.full = true
		f.arm()
	}
}

// arm schedules an update for when the folder has been quiet for a moment.
func (f *follower) arm() {
	now := time.Now()
	if f.timer == nil {
		f.first = now
	}
	wait := f.debounce
	if f.folder.err != nil {
		wait *= patience
	}
	wait = min(wait, f.first.Add(patience*f.debounce).Sub(now))
	f.timer = time.After(max(wait, 0))
}

func (f *follower) update() {
	f.timer = nil
	f.attach()
	var changed bool
	if f.everything || f.full {
		changed = f.folder.scan(f.isTouched)
	} else {
		changed = f.folder.scanOnly(f.touched)
	}
	clear(f.touched)
	f.everything, f.full = false, false
	if changed {
		snapshot := source.NewSnapshot(f.node, f.folder.contents())
		snapshot.Changes.Arrived = f.first
		f.publish(snapshot)
	}
}

func (f *follower) isTouched(name string) bool { return f.everything || f.touched[name] }
