package binaries

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestModules keeps what is written here and in the modules the same.
func TestModules(t *testing.T) {
	for _, m := range modules() {
		for _, name := range []string{"main.go", "go.mod", "go.sum"} {
			if _, err := os.Stat(filepath.Join("..", m.dir, name)); err != nil {
				t.Errorf("module %s: %v", m.dir, err)
			}
		}
	}
	content, err := os.ReadFile("../kubernetes/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	staging := "v0." + strings.TrimPrefix(KubernetesVersion, "v1.")
	for _, want := range []string{"k8s.io/kubernetes " + KubernetesVersion, "=> k8s.io/api " + staging} {
		if !strings.Contains(string(content), want) {
			t.Errorf("kubernetes/go.mod has no %q", want)
		}
	}
}

func TestVersionFlags(t *testing.T) {
	got := kubernetesVersionFlags()
	for _, want := range []string{
		"-X k8s.io/component-base/version.gitVersion=" + KubernetesVersion,
		"-X k8s.io/client-go/pkg/version.gitMajor=1",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("flags %q lack %q", got, want)
		}
	}
}

// TestLinkAll links programs through the links of their own folder, which may be removed and made again.
func TestLinkAll(t *testing.T) {
	place, dir := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(place, "kube-apiserver"), []byte("elf"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("kube-apiserver", filepath.Join(place, "kubectl")); err != nil {
		t.Fatal(err)
	}
	if err := linkAll(dir, []string{place}); err != nil {
		t.Fatal(err)
	}
	set := Set{Dir: dir}
	for _, name := range []string{"kube-apiserver", "kubectl"} {
		if content, err := os.ReadFile(set.Path(name)); err != nil || string(content) != "elf" {
			t.Errorf("%s is %q, %v", name, content, err)
		}
	}
}
