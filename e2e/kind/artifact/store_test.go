package artifact

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestGetBuildsOnce asks from several goroutines at once: flock counts file descriptions, so these are as good as processes.
func TestGetBuildsOnce(t *testing.T) {
	s := open(t)
	var built atomic.Int32
	build := func(_ context.Context, dir string) error {
		built.Add(1)
		return os.WriteFile(filepath.Join(dir, "content"), []byte("x"), 0o644)
	}
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			dir, err := s.Get(t.Context(), "thing", "0123456789abcdef", build)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := os.Stat(filepath.Join(dir, "content")); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if n := built.Load(); n != 1 {
		t.Errorf("built %d times, want once", n)
	}
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	s := open(t)
	broken := errors.New("broken")
	_, err := s.Get(t.Context(), "thing", "0123456789abcdef", func(_ context.Context, dir string) error {
		return errors.Join(os.WriteFile(filepath.Join(dir, "half"), nil, 0o644), broken)
	})
	if !errors.Is(err, broken) {
		t.Fatalf("error %v, want one that wraps %v", err, broken)
	}
	left, err := filepath.Glob(filepath.Join(s.Dir(), "*thing-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
	dir, err := s.Get(t.Context(), "thing", "0123456789abcdef", func(context.Context, string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("the second build found %v in its folder", entries)
	}
}

func TestLockEndsWithContext(t *testing.T) {
	s := open(t)
	unlock, err := s.lock(t.Context(), "thing")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := s.lock(ctx, "thing"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want that of the context", err)
	}
}

func TestPrune(t *testing.T) {
	s := open(t)
	place := func(name string) string { return filepath.Join(s.Dir(), name) }
	old := []string{"node-0000000000000000", "node-1111111111111111", "node-tools-0000000000000000", "other-0000000000000000"}
	for _, name := range append(old, "node-2222222222222222") {
		if err := os.Mkdir(place(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	then := time.Now().Add(-2 * time.Hour)
	for _, name := range old {
		if err := os.Chtimes(place(name), then, then); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Prune("node", place("node-1111111111111111"), time.Hour); err != nil {
		t.Fatal(err)
	}
	if exists(place("node-0000000000000000")) {
		t.Error("the old one is still there")
	}
	for _, name := range append(old[1:], "node-2222222222222222") {
		if !exists(place(name)) {
			t.Errorf("%s is gone", name)
		}
	}
}
