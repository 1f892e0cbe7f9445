package cluster

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestRuncWrapper runs the wrapper with a runc that prints its arguments.
func TestRuncWrapper(t *testing.T) {
	const before = `{"bounding":["CAP_CHOWN","CAP_SYS_RESOURCE"],"effective":["CAP_SYS_RESOURCE"]}`
	tests := map[string]struct {
		args            []string // FILE is the file with the capabilities
		haveSysResource bool
		want            string
	}{
		"create": {
			args: []string{"--root", "r", "create", "--bundle", "DIR", "id"},
			want: `{"bounding":["CAP_CHOWN","CAP_BPF","CAP_PERFMON","CAP_CHECKPOINT_RESTORE"],` +
				`"effective":["CAP_BPF","CAP_PERFMON","CAP_CHECKPOINT_RESTORE"]}`,
		},
		"exec, on a machine with everything": {
			args: []string{"exec", "--process", "DIR/config.json", "--detach", "id"}, haveSysResource: true,
			want: `{"bounding":["CAP_CHOWN","CAP_BPF","CAP_PERFMON","CAP_CHECKPOINT_RESTORE","CAP_SYS_RESOURCE"],` +
				`"effective":["CAP_BPF","CAP_PERFMON","CAP_CHECKPOINT_RESTORE","CAP_SYS_RESOURCE"]}`,
		},
		"anything else": {args: []string{"delete", "DIR/config.json", "id with spaces"}, want: before},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			wrapper, file := filepath.Join(dir, "runc"), filepath.Join(dir, "config.json")
			if err := os.WriteFile(wrapper, []byte(runcWrapper("/bin/echo", test.haveSysResource)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(before), 0o644); err != nil {
				t.Fatal(err)
			}
			var args []string
			for _, a := range test.args {
				args = append(args, strings.Replace(a, "DIR", dir, 1))
			}
			out, err := exec.Command(wrapper, args...).Output()
			if err != nil {
				t.Fatal(err)
			}
			if want := strings.Join(args, " ") + "\n"; string(out) != want {
				t.Errorf("runc was called with %q, want %q", out, want)
			}
			if got, err := os.ReadFile(file); err != nil || string(got) != test.want {
				t.Errorf("capabilities: %s (%v), want %s", got, err, test.want)
			}
		})
	}
}

// TestDaemonIsOurs checks that nothing of the daemon is where another docker on the machine would have it.
func TestDaemonIsOurs(t *testing.T) {
	content, err := daemonConfig("/cache/docker")
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Hosts    []string
		DataRoot string `json:"data-root"`
		ExecRoot string `json:"exec-root"`
		PIDFile  string
	}
	if err := json.Unmarshal(content, &got); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Hosts, []string{"unix:///run/culvert-e2e/docker.sock"}) || got.DataRoot != "/cache/docker" {
		t.Errorf("hosts %v, data root %s", got.Hosts, got.DataRoot)
	}
	for _, path := range []string{got.ExecRoot, got.PIDFile} {
		if !strings.HasPrefix(path, runDir+"/") {
			t.Errorf("%s is not below %s", path, runDir)
		}
	}
}

func TestWithoutPrefix(t *testing.T) {
	got := withoutPrefix([]string{"PATH=/bin", "DOCKER_HOST=x", "HOME=/", "DOCKER_CONTEXT=y"}, "DOCKER_")
	if want := []string{"PATH=/bin", "HOME=/"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
