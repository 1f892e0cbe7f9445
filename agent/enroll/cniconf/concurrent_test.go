package cniconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestForeignRewriter: while two agents keep the plugin in place, somebody else rewrites the list, in place and by
// rename. A reader never sees anything but valid JSON (except what the rewriter itself leaves half written), each
// rewrite is repaired, and none is lost.
func TestForeignRewriter(t *testing.T) {
	n := newNode(t)
	const name = "10-a.conflist"
	version := func(v int) string { return strings.Replace(kindnet, "1e3", fmt.Sprint(1000+v), 1) }
	n.write(name, version(0))
	a, b := n.installer(), n.installer()
	n.run(a)
	n.run(b)
	n.installed(a)

	for _, how := range []struct {
		name  string
		write func(name, text string)
	}{{"rename", n.replace}, {"in place", n.write}} {
		var worst time.Duration
		for v := 1; v <= 100; v++ {
			how.write(name, version(v))
			// Mostly in quick succession, into the middle of a repair.
			if v%10 != 0 {
				time.Sleep(rand.N(3 * time.Millisecond))
				continue
			}
			want := fmt.Sprintf(`"mtu": %d`, 1000+v)
			took := n.soon("repair", func() bool { return n.chained(name) && strings.Contains(n.read(name), want) })
			worst = max(worst, took)
			time.Sleep(200 * time.Millisecond) // let the limit of writes recover
		}
		t.Logf("%s: 100 rewrites, slowest repair %s", how.name, worst)
		time.Sleep(100 * time.Millisecond)
		if !strings.Contains(n.read(name), `"mtu": 1100`) {
			t.Errorf("%s: the last rewrite was lost: %s", how.name, n.read(name))
		}
		if worst > tolerance {
			t.Errorf("%s: slowest repair %s", how.name, worst)
		}
	}
	must(t, a.Uninstall())
	must(t, b.Uninstall())
	must(t, a.Uninstall()) // b may have repaired after a
	if got := n.read(name); got != version(100) {
		t.Errorf("not restored: %s", got)
	}
	if names := n.names(); len(names) != 1 {
		t.Errorf("left behind: %v", names)
	}
}

// TestEditLosesNothing: what somebody else writes between our reading and our writing stays.
func TestEditLosesNothing(t *testing.T) {
	for name, foreign := range map[string]func(path string) error{
		"rename": func(path string) error {
			return errors.Join(os.WriteFile(path+".new", []byte("foreign"), 0o600), os.Rename(path+".new", path))
		},
		"in place":         func(path string) error { return os.WriteFile(path, []byte("foreign"), 0o600) },
		"truncated so far": func(path string) error { return os.Truncate(path, 0) },
		"removed":          os.Remove,
		"a folder": func(path string) error {
			return errors.Join(os.Remove(path), os.Mkdir(path, 0o700))
		},
		"a link": func(path string) error {
			return errors.Join(os.Remove(path), os.Symlink("elsewhere", path))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "f")
			must(t, os.WriteFile(path, []byte("old"), 0o600))
			var before os.FileInfo
			err := edit(path, []byte("old"), func([]byte) ([]byte, error) {
				must(t, foreign(path))
				before, _ = os.Lstat(path)
				return []byte("ours"), nil
			})
			if !errors.Is(err, errUnsettled) {
				t.Errorf("error %v, want %v", err, errUnsettled)
			}
			after, _ := os.Lstat(path)
			if (before == nil) != (after == nil) || before != nil && !os.SameFile(before, after) {
				t.Errorf("before %v, after %v", before, after)
			}
			left, _ := filepath.Glob(filepath.Join(dir, ".*"))
			if len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// TestReadersSeeWholeFiles: at no time is there no file, or a part of one.
func TestReadersSeeWholeFiles(t *testing.T) {
	n := newNode(t)
	n.write("10-a.conflist", kindnet)
	i := n.installer()
	n.run(i)
	done := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		for reads := 0; ; reads++ {
			select {
			case <-done:
				t.Logf("%d reads", reads)
				return
			default:
			}
			if text := n.read("10-a.conflist"); !json.Valid([]byte(text)) {
				t.Errorf("a reader saw %q", text)
				return
			}
		}
	})
	for range 50 {
		n.replace("10-a.conflist", kindnet)
		n.soon("repair", func() bool { return n.chained("10-a.conflist") })
	}
	close(done)
	reader.Wait()
}
