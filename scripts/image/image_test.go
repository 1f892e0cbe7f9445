package main

import (
	"archive/tar"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// programs makes a folder with two small programs; when and with which mode they were made must not matter.
func programs(t *testing.T, when time.Time, mode os.FileMode) string {
	t.Helper()
	dir := t.TempDir()
	for _, p := range []string{"culvert-cni", "culvert"} {
		file := filepath.Join(dir, p)
		if err := os.WriteFile(file, []byte("program "+p), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, when, when); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func assembled(t *testing.T, arch, dir string) image {
	t.Helper()
	img, err := assemble(arch, "v1", dir)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func digest(t *testing.T, img v1.Image) string {
	t.Helper()
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

func TestReproducible(t *testing.T) {
	a := assembled(t, "amd64", programs(t, time.Now(), 0o755))
	b := assembled(t, "amd64", programs(t, time.Now().Add(-time.Hour), 0o700))
	if digest(t, a) != digest(t, b) {
		t.Errorf("digests differ: %s, %s", digest(t, a), digest(t, b))
	}
	if other := assembled(t, "arm64", programs(t, time.Now(), 0o755)); digest(t, other) == digest(t, a) {
		t.Error("the architecture makes no difference")
	}
}

func TestArchive(t *testing.T) {
	file := filepath.Join(t.TempDir(), "image.tar")
	img := assembled(t, "amd64", programs(t, time.Now(), 0o755))
	if err := writeArchive(file, "v1", img); err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"v1", "dev"} {
		ref, err := name.NewTag(repository + ":" + tag)
		if err != nil {
			t.Fatal(err)
		}
		read, err := tarball.ImageFromPath(file, &ref)
		if err != nil {
			t.Fatalf("%s: %v", tag, err)
		}
		if err := validate.Image(read); err != nil {
			t.Errorf("%s: %v", tag, err)
		}
		config, err := read.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if config.Config.User != nobody || config.Architecture != "amd64" || !config.Created.Equal(epoch()) {
			t.Errorf("%s: configuration %+v", tag, config)
		}
		want := []string{"usr", "usr/local", "usr/local/bin", "usr/local/bin/culvert", "usr/local/bin/culvert-cni"}
		if got := paths(t, read); !slices.Equal(got, want) {
			t.Errorf("%s: paths %q, want %q", tag, got, want)
		}
	}
}

// paths lists an image's file system, and checks that everything is root's and executable.
func paths(t *testing.T, img v1.Image) []string {
	t.Helper()
	r := mutate.Extract(img)
	defer r.Close()
	var all []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			slices.Sort(all)
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Mode&0o7777 != 0o755 {
			t.Errorf("%s: owner %d:%d, mode %o", h.Name, h.Uid, h.Gid, h.Mode)
		}
		all = append(all, h.Name)
	}
}

func TestLayout(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "oci")
	from := programs(t, time.Now(), 0o755)
	want, err := writeLayout(dir, "v1", []image{assembled(t, "amd64", from), assembled(t, "arm64", from)})
	if err != nil {
		t.Fatal(err)
	}
	outer, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := outer.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 1 || manifest.Manifests[0].Digest.String() != want ||
		manifest.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "v1" {
		t.Fatalf("layout has %+v, want one index %s under v1", manifest.Manifests, want)
	}
	index, err := outer.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	inner, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var architectures []string
	for _, m := range inner.Manifests {
		architectures = append(architectures, m.Platform.Architecture)
	}
	if !slices.Equal(architectures, []string{"amd64", "arm64"}) {
		t.Errorf("architectures %q", architectures)
	}
}

func TestVersionMustBeATag(t *testing.T) {
	for _, version := range []string{"", "a b", "-x", "v1+dirty"} {
		if err := run(t.Context(), version, t.TempDir(), true); err == nil {
			t.Errorf("version %q was accepted", version)
		}
	}
}
