package node

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/e2e/kind/binaries"
)

// fakeSet returns programs that are there and nothing else.
func fakeSet(t *testing.T) binaries.Set {
	t.Helper()
	set := binaries.Set{Dir: t.TempDir()}
	if err := os.WriteFile(set.Path("kubelet"), []byte("elf"), 0o755); err != nil {
		t.Fatal(err)
	}
	return set
}

func TestAddFiles(t *testing.T) {
	rootfs := t.TempDir()
	if err := addFiles(rootfs, fakeSet(t)); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{
		"usr/bin/kubelet":          0o755,
		"usr/bin/kubeadm":          0o755,
		"usr/bin/kubectl":          0o755,
		"usr/local/bin/e2e-routes": 0o755,
		"kind/version":             0o644,
		"etc/sysctl.d/20-e2e.conf": 0o644,
		"etc/systemd/system/multi-user.target.wants/e2e-images.service": 0o644,
		"etc/systemd/system/multi-user.target.wants/e2e-routes.service": 0o644,
	} {
		info, err := os.Stat(filepath.Join(rootfs, path)) // follows links, which must lead somewhere
		if err != nil {
			t.Error(err)
			continue
		}
		if info.Mode().Perm() != mode {
			t.Errorf("%s has mode %o, want %o", path, info.Mode().Perm(), mode)
		}
	}
}

// TestImages has the names that kubeadm and containerd ask for: one that is missing would be pulled.
func TestImages(t *testing.T) {
	debian := t.TempDir()
	if err := os.Mkdir(filepath.Join(debian, "proxy"), 0o755); err != nil {
		t.Fatal(err)
	}
	images, err := kubernetesImages(debian, "/pause", fakeSet(t))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, img := range images {
		names = append(names, img.Names...)
	}
	slices.Sort(names)
	want := []string{
		"registry.k8s.io/coredns/coredns:v1.12.1",
		"registry.k8s.io/etcd:3.6.5-0",
		"registry.k8s.io/kube-apiserver:v1.34.4",
		"registry.k8s.io/kube-controller-manager:v1.34.4",
		"registry.k8s.io/kube-proxy:v1.34.4",
		"registry.k8s.io/kube-scheduler:v1.34.4",
		"registry.k8s.io/pause:3.10",
		"registry.k8s.io/pause:3.10.1",
	}
	if !slices.Equal(names, want) {
		t.Errorf("images %v, want %v", names, want)
	}
}

// TestVersions keeps the images' tags and the modules they are built from the same.
func TestVersions(t *testing.T) {
	for module, want := range map[string]string{
		"etcd":    "go.etcd.io/etcd/server/v3 v3.6.5",
		"coredns": "github.com/coredns/coredns v1.12.1",
	} {
		content, err := os.ReadFile(filepath.Join("..", module, "go.mod"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(content), want) {
			t.Errorf("%s/go.mod does not require %s", module, want)
		}
	}
}
