package cluster

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestIsDaemon(t *testing.T) {
	const data = "/root/.cache/culvert-e2e/docker"
	tests := map[string]bool{
		"dockerd --config-file=/run/culvert-e2e/daemon.json":                                  true,
		"containerd --config /run/culvert-e2e/docker/containerd/containerd.toml":              true,
		"/usr/bin/containerd-shim-runc-v2 -address /run/culvert-e2e/docker/c/containerd.sock": true,
		"containerd --root " + data + "/containerd":                                           true,
		"dockerd": false,
		"/usr/bin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock": false,
		"containerd-shim-runc-v2 -address /run/containerd/containerd.sock":       false,
		"vi /run/culvert-e2e/daemon.json":                                        false,
		"dockerd --config-file=/run/culvert-e2e-other.json":                      false,
	}
	for line, want := range tests {
		if got := isDaemon(strings.Fields(line), data); got != want {
			t.Errorf("%s: %t, want %t", line, got, want)
		}
	}
}

// TestDaemons reads a process list in which one has ended, one is a zombie and one is ours.
func TestDaemons(t *testing.T) {
	proc := t.TempDir()
	for name, cmdline := range map[string]string{
		"1": "/sbin/init\x00", "20": "", "30": "dockerd\x00--config-file=/run/culvert-e2e/daemon.json\x00", "self": "x\x00",
	} {
		if err := os.Mkdir(filepath.Join(proc, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(proc, name, "cmdline"), []byte(cmdline), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(proc, "40"), 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := daemons(proc, "/data")
	if err != nil || !slices.Equal(got, []int{30}) {
		t.Errorf("daemons %v, %v; want [30]", got, err)
	}
}

func TestMountsBelow(t *testing.T) {
	const mountinfo = `22 1 8:1 / / rw - ext4 /dev/sda rw
30 22 0:4 / /run/culvert-e2e/docker/a rw shared:1 - overlay overlay rw
31 30 0:5 / /run/culvert-e2e/docker/a/b\040c rw - nsfs nsfs rw
32 22 0:6 / /run/culvert-e2e/docker-other rw - tmpfs tmpfs rw
33 22 0:7 / /data rw - ext4 /dev/sdb rw
`
	got := mountsBelow([]byte(mountinfo), []string{"/run/culvert-e2e/docker", "/data"})
	want := []string{"/data", "/run/culvert-e2e/docker/a/b c", "/run/culvert-e2e/docker/a"}
	if !slices.Equal(got, want) {
		t.Errorf("mounts %q, want %q", got, want)
	}
}

func TestRemoveEmpty(t *testing.T) {
	empty, full := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := removeEmpty([]string{empty, full, "/nowhere/at/all"}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(empty); !os.IsNotExist(err) {
		t.Errorf("the empty folder: %v", err)
	}
	if _, err := os.Stat(full); err != nil {
		t.Errorf("the other folder: %v", err)
	}
}
