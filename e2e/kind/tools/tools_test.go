package tools

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/culvert-mesh/culvert/e2e/kind/image"
)

func TestImage(t *testing.T) {
	files := t.TempDir()
	app := filepath.Join(t.TempDir(), "app")
	if err := errors.Join(
		os.MkdirAll(filepath.Join(files, "bin"), 0o755),
		os.WriteFile(filepath.Join(files, "bin", "busybox"), []byte("elf"), 0o755),
		os.Symlink("busybox", filepath.Join(files, "bin", "sh")),
		os.WriteFile(app, []byte("elf"), 0o755),
	); err != nil {
		t.Fatal(err)
	}
	img, err := toolsImage(app, files)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(img.Names, []string{Image}) || !slices.Equal(img.Config.Entrypoint, []string{"/usr/local/bin/app"}) {
		t.Errorf("names %v, entry point %v", img.Names, img.Config.Entrypoint)
	}
	var out bytes.Buffer
	if err := image.Write(&out, img); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"bin/busybox", "bin/sh", "usr/local/bin/app", "etc/passwd", "tmp/"} {
		if !bytes.Contains(out.Bytes(), []byte(want)) {
			t.Errorf("the archive has no %s", want)
		}
	}
	if _, err := toolsImage(app, filepath.Join(files, "missing")); err == nil {
		t.Error("no error without the files of Debian")
	}
}
