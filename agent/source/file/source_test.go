package file

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/agent/source"
)

func policyText(name, mode string) string {
	return fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: %s\n  namespace: n\nspec: {mtls: {mode: %s}}\n", name, mode)
}

// state is a Snapshot in words: the policies with their modes, and where something could not be read.
func state(s *source.Snapshot) string {
	var parts []string
	for _, p := range s.AllPolicies() {
		parts = append(parts, p.Name+"="+p.Mode.String())
	}
	slices.Sort(parts)
	for _, n := range s.UnreadablePolicies {
		parts = append(parts, "unreadable:"+n)
	}
	return fmt.Sprintf("%s problems:%v", strings.Join(parts, " "), len(s.Problems) > 0)
}

// follow starts a Source and returns a function that waits until its state is the given one.
func follow(t *testing.T, dir string) func(want string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	snapshots := make(chan *source.Snapshot, 1000)
	done := make(chan error, 1)
	s := New(dir, Options{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	go func() { done <- s.Run(ctx, func(s *source.Snapshot) { snapshots <- s }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	last := "nothing"
	return func(want string) {
		t.Helper()
		timeout := time.After(5 * time.Second)
		for last != want {
			select {
			case s := <-snapshots:
				last = state(s)
			case <-timeout:
				t.Fatalf("state is %q, want %q", last, want)
			}
		}
	}
}

func TestFollow(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a.yaml")
	write(t, file, policyText("a", "STRICT"))
	wait := follow(t, dir)
	wait("a=STRICT problems:false")

	write(t, file, policyText("a", "PERMISSIVE"))
	wait("a=PERMISSIVE problems:false")

	write(t, filepath.Join(dir, ".a.yaml.swp"), policyText("temporary", "STRICT"))
	write(t, filepath.Join(dir, ".new.yaml"), policyText("a", "STRICT"))
	if err := os.Rename(filepath.Join(dir, ".new.yaml"), file); err != nil {
		t.Fatal(err)
	}
	wait("a=STRICT problems:false")

	write(t, file, policyText("a", "STRICT")+"broken: [")
	wait("a=STRICT problems:true")
	write(t, filepath.Join(dir, "b.yaml"), policyText("b", "DISABLE"))
	wait("a=STRICT b=DISABLE problems:true")
	write(t, file, policyText("a", "DISABLE"))
	wait("a=DISABLE b=DISABLE problems:false")

	if err := os.Remove(filepath.Join(dir, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	wait("a=DISABLE problems:false")
}

func TestFollowFolderRemoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "config")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "a.yaml"), policyText("a", "STRICT"))
	wait := follow(t, dir)
	wait("a=STRICT problems:false")
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	wait("a=STRICT problems:true")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "b.yaml"), policyText("b", "STRICT"))
	wait("b=STRICT problems:false")
	write(t, filepath.Join(dir, "b.yaml"), policyText("b", "DISABLE"))
	wait("b=DISABLE problems:false")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
}

func TestRunWithoutFolder(t *testing.T) {
	s := New(filepath.Join(t.TempDir(), "missing"), Options{})
	err := s.Run(context.Background(), func(*source.Snapshot) { t.Error("published") })
	if err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("error is %v", err)
	}
}

// TestLastGood plays histories of a folder, each step a set of files, against the state after it.
func TestLastGood(t *testing.T) {
	good, bad := policyText("a", "STRICT"), policyText("a", "STRICTT")
	pod := "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n"
	type files map[string]string
	type step struct {
		files files
		want  string
	}
	for name, steps := range map[string][]step{
		"turns invalid":              {{files{"a": good}, "a=STRICT problems:false"}, {files{"a": bad}, "a=STRICT problems:true"}},
		"invalid from the start":     {{files{"a": bad}, "unreadable:n problems:true"}, {files{"a": good}, "a=STRICT problems:false"}},
		"unparsable":                 {{files{"a": good}, "a=STRICT problems:false"}, {files{"a": good + "x: ["}, "a=STRICT problems:true"}},
		"unparsable from the start":  {{files{"a": good + "x: ["}, "unreadable:n problems:true"}},
		"whatever from the start":    {{files{"a": "x: ["}, "unreadable: problems:true"}},
		"stays through more edits":   {{files{"a": good}, "a=STRICT problems:false"}, {files{"a": bad}, "a=STRICT problems:true"}, {files{"a": "x: ["}, "a=STRICT problems:true"}, {files{"a": "y: ["}, "a=STRICT problems:true"}},
		"new broken beside good":     {{files{"a": good}, "a=STRICT problems:false"}, {files{"a": good + "---\n" + policyText("b", "X")}, "a=STRICT unreadable:n problems:true"}},
		"new unparsable beside good": {{files{"a": good}, "a=STRICT problems:false"}, {files{"a": good + "---\nx: ["}, "a=STRICT unreadable: problems:true"}},
		"others in the file go on": {{files{"a": good + "---\n" + policyText("b", "STRICT")}, "a=STRICT b=STRICT problems:false"},
			{files{"a": bad + "---\n" + policyText("b", "DISABLE")}, "a=STRICT b=DISABLE problems:true"}},
		"deleted":                     {{files{"a": good, "b": policyText("b", "STRICT")}, "a=STRICT b=STRICT problems:false"}, {files{"b": policyText("b", "STRICT")}, "b=STRICT problems:false"}},
		"deleted while broken":        {{files{"a": good}, "a=STRICT problems:false"}, {files{"a": bad}, "a=STRICT problems:true"}, {files{}, " problems:false"}},
		"emptied":                     {{files{"a": good}, "a=STRICT problems:false"}, {files{"a": ""}, "a=STRICT problems:true"}, {files{"a": "# nothing"}, " problems:false"}},
		"renamed and broken at once":  {{files{"a": good}, "a=STRICT problems:false"}, {files{"b": bad}, "a=STRICT problems:true"}, {files{"b": bad + "#"}, "a=STRICT problems:true"}},
		"moved while the rest breaks": {{files{"a": good}, "a=STRICT problems:false"}, {files{"a": "x: [", "b": policyText("a", "DISABLE")}, "a=DISABLE problems:true"}},
		"twice: the first stays":      {{files{"a": good, "b": policyText("a", "DISABLE")}, "a=STRICT problems:true"}, {files{"b": policyText("a", "DISABLE")}, "a=DISABLE problems:false"}},
		"broken pod":                  {{files{"a": good, "b": pod + "spec: 1\n"}, "a=STRICT problems:true"}, {files{"a": good, "b": pod}, "a=STRICT problems:false"}},
		"too large":                   {{files{"a": good}, "a=STRICT problems:false"}, {files{"a": "#" + strings.Repeat(" ", MaxFileSize)}, "a=STRICT problems:true"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			f := newFolder(dir, "istio-system", slog.New(slog.NewTextHandler(io.Discard, nil)))
			for i, s := range steps {
				names := replace(t, dir, s.files)
				if names["rescan"] = true; i%2 == 0 {
					f.scan(func(string) bool { return true })
				} else {
					f.scanOnly(names)
				}
				if got := state(source.NewSnapshot("", f.contents())); got != s.want {
					t.Fatalf("step %d: got %q, want %q", i, got, s.want)
				}
			}
		})
	}
}

// replace makes the folder hold these files and returns the names that events would carry.
func replace(t *testing.T, dir string, files map[string]string) map[string]bool {
	t.Helper()
	old, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, path := range old {
		names[filepath.Base(path)] = true
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		names[name+".yaml"] = true
		write(t, filepath.Join(dir, name+".yaml"), text)
	}
	return names
}

func TestProblemsAreLoggedOnce(t *testing.T) {
	var log strings.Builder
	dir := t.TempDir()
	f := newFolder(dir, "istio-system", slog.New(slog.NewTextHandler(&log, nil)))
	write(t, filepath.Join(dir, "a.yaml"), policyText("a", "X"))
	for range 3 {
		f.scan(func(string) bool { return true })
		f.contents()
	}
	if n := strings.Count(log.String(), "manifest not used"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, &log)
	}
}

func TestDanglingLinkKeepsLastGood(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(t.TempDir(), "target")
	write(t, target, policyText("a", "STRICT"))
	if err := os.Symlink(target, filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	f := newFolder(dir, "istio-system", slog.New(slog.NewTextHandler(io.Discard, nil)))
	for _, want := range []string{"a=STRICT problems:false", "a=STRICT problems:true"} {
		f.scan(func(string) bool { return false })
		if got := state(source.NewSnapshot("", f.contents())); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
		_ = os.Remove(target)
	}
}
