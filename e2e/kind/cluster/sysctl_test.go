package cluster

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSysctls(t *testing.T) {
	const low, high = "fs/inotify/max_user_instances", "fs/inotify/max_user_watches"
	root := t.TempDir()
	set := func(name, value string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	check := func(name, want string) {
		t.Helper()
		content, err := os.ReadFile(filepath.Join(root, name))
		if got := strings.TrimSpace(string(content)); err != nil || got != want {
			t.Errorf("%s is %q (%v), want %q", name, got, err, want)
		}
	}
	set(low, "128\n")
	set(high, "1000000\n")
	old := map[string]string{}
	err := raiseSysctls(root, func(name, value string) error {
		check(name, value) // it is told before the change
		old[name] = value
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	check(low, "1024")
	check(high, "1000000")
	if want := map[string]string{low: "128"}; !maps.Equal(old, want) {
		t.Errorf("remembered %v, want %v", old, want)
	}
	if err := restoreSysctls(root, old); err != nil {
		t.Fatal(err)
	}
	check(low, "128")
	set(low, "4096") // somebody else's doing
	if err := restoreSysctls(root, old); err != nil {
		t.Fatal(err)
	}
	check(low, "4096")
}
