package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const module = "example.org/house"

func TestCheckImports(t *testing.T) {
	tests := []struct {
		from, to string
		allowed  bool
	}{
		{"policy", "policy/internal/order", true},
		{"policy", "bpf", false},
		{"policy", "tunnel/control", false},
		{"policy", "k8s.io/api/core/v1", false},
		{"bpf", "policy", false},
		{"tunnel/hbone", "policy", false},
		{"tunnel/hbone", "tunnel/control", false},
		{"tunnel/control", "policy", true},
		{"tunnel/control", "tunnel/hbone", false},
		{"tunnel", "tunnel/hbone", true},
		{"tunnel", "tunnel/control", true},
		{"tunnel", "policy", true},
		{"tunnel", "agent/source", false},
		{"tunnel", "bpf", false},
		{"agent", "agent/datapath", true},
		{"agent", "tunnel/control", true},
		{"agent", "tunnel", false},
		{"agent", "tunnel/hbone", false},
		{"agent", "bpf", false},
		{"agent/enroll", "bpf", false},
		{"agent/datapath", "bpf", true},
		{"agent/datapath/flows", "bpf", true},
		{"agent/datapathology", "bpf", false},
		{"agent/source/file", "k8s.io/api/core/v1", true},
		{"agent/source/file", "istio.io/api/security/v1beta1", true},
		{"agent/enroll", "k8s.io/api/core/v1", false},
		{"tunnel", "istio.io/api/security/v1beta1", false},
		{"cmd/culvert", "e2e/demo", true},
		{"cmd/culvert", "tunnel", true},
		{"cmd/culvert", "k8s.io/api/core/v1", false},
		{"e2e/demo", "agent/datapath", true},
		{"e2e/demo", "cmd/culvert", false},
		{"agent", "e2e/lab", false},
		{"tunnel", "e2e/lab", false},
		{"agent", "cmd/culvert", false},
		{"scripts/importcheck", "policy", false},
		{"elsewhere", "policy", false},
		{"policy", "golang.org/x/sys/unix", true},
	}
	for _, tt := range tests {
		t.Run(tt.from+" to "+tt.to, func(t *testing.T) {
			got := checkImports(module, []goPackage{{ImportPath: module + "/" + tt.from, Imports: []string{path(tt.to)}}})
			if allowed := len(got) == 0; allowed != tt.allowed {
				t.Errorf("allowed = %v, want %v (%q)", allowed, tt.allowed, got)
			}
		})
	}
}

// path completes a folder of the module to an import path.
func path(to string) string {
	first, _, _ := strings.Cut(to, "/")
	if strings.Contains(first, ".") {
		return to
	}
	return module + "/" + to
}

func TestTestsMayUseTheLabOnly(t *testing.T) {
	pkg := goPackage{
		ImportPath:   module + "/agent/datapath",
		TestImports:  []string{module + "/e2e/lab"},
		XTestImports: []string{module + "/e2e/lab", module + "/tunnel"},
	}
	got := checkImports(module, []goPackage{pkg})
	if len(got) != 1 || !strings.Contains(got[0], "agent/datapath imports "+module+"/tunnel:") {
		t.Errorf("problems = %q, want the import of tunnel alone", got)
	}
}

// TestModule runs the whole check on modules on disk: one as designed, one with a forbidden arrow and a stray folder.
func TestModule(t *testing.T) {
	tests := []struct {
		name  string
		files map[string]string
		want  []string
	}{
		{
			name: "as designed",
			files: map[string]string{
				"agent/agent.go":   "package agent\n\nimport _ \"" + module + "/policy\"\n",
				"policy/policy.go": "package policy\n",
			},
		},
		{
			name: "upwards",
			files: map[string]string{
				"agent/agent.go":   "package agent\n",
				"policy/policy.go": "package policy\n\nimport _ \"" + module + "/agent\"\n",
				"pkg/README":       "a folder too many\n",
			},
			want: []string{"pkg/: a top-level folder", "policy imports " + module + "/agent:"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Chdir(writeModule(t, tt.files))
			got, err := run()
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != len(tt.want) {
				t.Fatalf("problems = %q, want %q", got, tt.want)
			}
			for i := range got {
				if !strings.HasPrefix(got[i], tt.want[i]) {
					t.Errorf("problem %d = %q, want %q…", i, got[i], tt.want[i])
				}
			}
		})
	}
}

func writeModule(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	files["go.mod"] = "module " + module + "\n\ngo 1.21\n"
	for name, content := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
