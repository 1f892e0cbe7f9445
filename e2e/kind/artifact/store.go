// Package artifact keeps what is costly to make in a folder, each thing under a key of everything it was made from.
// A thing is there whole or not at all: it is made beside its place and moved there when it is complete.
package artifact

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lockRetry is how often a lock that another process holds is tried again.
const lockRetry = 200 * time.Millisecond

// Store is a folder of artifacts. Several processes may use it at the same time.
type Store struct {
	dir string
	log *slog.Logger
}

// Open opens the store in dir and makes the folder. Without dir it is CULVERT_E2E_CACHE or, without
// that, ~/.cache/culvert-e2e.
func Open(dir string, log *slog.Logger) (*Store, error) {
	if dir == "" {
		dir = os.Getenv("CULVERT_E2E_CACHE")
	}
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, fmt.Errorf("artifact: no cache folder: %w; set CULVERT_E2E_CACHE", err)
		}
		dir = filepath.Join(home, ".cache", "culvert-e2e")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("artifact: cache folder: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("artifact: make the cache folder: %w; CULVERT_E2E_CACHE names another", err)
	}
	return &Store{dir: dir, log: log}, nil
}

// Dir returns the store's folder.
func (s *Store) Dir() string { return s.dir }

// Get returns the folder of an artifact. If there is none under that key, build makes it: it fills the folder
// it is given, which becomes the artifact's when build returns without an error.
func (s *Store) Get(ctx context.Context, name, key string, build func(ctx context.Context, dir string) error) (string, error) {
	place := filepath.Join(s.dir, name+"-"+key)
	if exists(place) {
		return place, nil
	}
	unlock, err := s.lock(ctx, name)
	if err != nil {
		return "", err
	}
	defer unlock()
	if exists(place) { // another process was faster
		return place, nil
	}
	if err := s.build(ctx, name, place, build); err != nil {
		return "", fmt.Errorf("artifact: make %s: %w", name, err)
	}
	return place, nil
}

// build makes an artifact; the caller holds its lock.
func (s *Store) build(ctx context.Context, name, place string, build func(context.Context, string) error) error {
	unfinished := filepath.Join(s.dir, ".unfinished-"+name)
	if err := os.RemoveAll(unfinished); err != nil {
		return fmt.Errorf("remove what an interrupted run left: %w", err)
	}
	if err := os.Mkdir(unfinished, 0o755); err != nil {
		return err
	}
	start := time.Now()
	s.log.Info("building", "artifact", name, "in", place)
	if err := build(ctx, unfinished); err != nil {
		return errors.Join(err, os.RemoveAll(unfinished))
	}
	if err := os.Rename(unfinished, place); err != nil {
		return err
	}
	s.log.Info("built", "artifact", name, "took", time.Since(start).Round(time.Second/10))
	return nil
}

// lock waits until no other process makes that artifact.
func (s *Store) lock(ctx context.Context, name string) (unlock func(), err error) {
	path := filepath.Join(s.dir, ".lock-"+name)
	unlock, err = Lock(ctx, path, func() { s.log.Info("waiting: another process makes it", "artifact", name) })
	if err != nil {
		return nil, fmt.Errorf("artifact: %w", err)
	}
	return unlock, nil
}

// Lock takes the lock file of that path and waits while another process holds it. It calls waiting once
// if it has to. The lock ends with the process at the latest.
func Lock(ctx context.Context, path string, waiting func()) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	for told := false; ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		if !told {
			waiting()
			told = true
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("lock %s, which another process holds: %w", path, ctx.Err()), f.Close())
		case <-time.After(lockRetry):
		}
	}
}

// Prune removes the artifacts of that name except the one in keep, when they are older than age.
func (s *Store) Prune(name, keep string, age time.Duration) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("artifact: %w", err)
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(s.dir, e.Name())
		key, mine := strings.CutPrefix(e.Name(), name+"-")
		if !mine || len(key) != keyLength || path == keep {
			continue
		}
		info, err := e.Info()
		if err != nil || time.Since(info.ModTime()) < age {
			continue
		}
		s.log.Info("removing an old artifact", "path", path)
		errs = append(errs, os.RemoveAll(path))
	}
	return errors.Join(errs...)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
