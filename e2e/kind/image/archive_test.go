package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// read returns the files of an archive, and fails on duplicate names, which docker refuses.
func read(t *testing.T, archive []byte) map[string]tarFile {
	t.Helper()
	files := map[string]tarFile{}
	for in := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := files[h.Name]; twice {
			t.Errorf("%s is there twice", h.Name)
		}
		files[h.Name] = tarFile{header: *h, content: content}
	}
}

type tarFile struct {
	header  tar.Header
	content []byte
}

func (f tarFile) String() string {
	return fmt.Sprintf("%c %o %d:%d %s%s", f.header.Typeflag, f.header.Mode, f.header.Uid, f.header.Gid, f.header.Linkname, f.content)
}

func write(t *testing.T, images ...Image) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Write(&out, images...); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestLayerFiles(t *testing.T) {
	source := t.TempDir()
	if err := errors.Join(
		os.WriteFile(filepath.Join(source, "program"), []byte("elf"), 0o700),
		os.WriteFile(filepath.Join(source, "data"), []byte("text"), 0o600),
		os.MkdirAll(filepath.Join(source, "below"), 0o700),
		os.Symlink("../data", filepath.Join(source, "below", "link")),
	); err != nil {
		t.Fatal(err)
	}
	layer := NewLayer().AddDir("/tmp", fs.ModeSticky|0o777).AddContent("/etc/passwd", []byte("root"), 0o644).
		AddFile("/usr/bin/tool", filepath.Join(source, "program")).AddLink("/bin", "usr/bin")
	if err := layer.AddTree(source); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := layer.write(&out); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for name, f := range read(t, out.Bytes()) {
		got[name] = f.String()
	}
	want := map[string]string{
		"tmp/":         "5 1777 0:0 ",
		"etc/":         "5 755 0:0 ",
		"etc/passwd":   "0 644 0:0 root",
		"usr/":         "5 755 0:0 ",
		"usr/bin/":     "5 755 0:0 ",
		"usr/bin/tool": "0 755 0:0 elf",
		"bin":          "2 777 0:0 usr/bin",
		"program":      "0 755 0:0 elf",
		"data":         "0 644 0:0 text",
		"below/":       "5 755 0:0 ",
		"below/link":   "2 777 0:0 ../data",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files differ (-want +got):\n%s", diff)
	}
}

func TestWrite(t *testing.T) {
	shared, own := NewLayer().AddContent("a", []byte("shared"), 0o644), NewLayer().AddContent("b", []byte("own"), 0o755)
	config := Config{Entrypoint: []string{"/b"}, Env: []string{"PATH=/"}, StopSignal: "SIGRTMIN+3"}
	images := []Image{
		{Names: []string{"example.org/one:1", "example.org/uno:1"}, Layers: []*Layer{shared}},
		{Names: []string{"example.org/two:1"}, Layers: []*Layer{shared, own}, Config: config},
	}
	archive := write(t, images...)
	if again := write(t, images...); !bytes.Equal(archive, again) {
		t.Error("the same images give different archives")
	}
	files := read(t, archive)
	var manifests []manifest
	if err := json.Unmarshal(files["manifest.json"].content, &manifests); err != nil {
		t.Fatal(err)
	}
	if len(manifests) != 2 {
		t.Fatalf("%d images, want 2", len(manifests))
	}
	for i, m := range manifests {
		if diff := cmp.Diff(images[i].Names, m.RepoTags); diff != "" {
			t.Errorf("names of image %d differ (-want +got):\n%s", i, diff)
		}
		checkImage(t, files, m, images[i].Config)
	}
	if got := slices.Sorted(maps.Keys(files)); len(got) != 5 { // the manifest, two configurations, two layers
		t.Errorf("the archive has %v; a shared layer should be there once", got)
	}
}

// checkImage checks that the digests in an image's configuration are those of its layers.
func checkImage(t *testing.T, files map[string]tarFile, m manifest, want Config) {
	t.Helper()
	var config configFile
	if err := json.Unmarshal(files[m.Config].content, &config); err != nil {
		t.Fatalf("%s: %v", m.Config, err)
	}
	if diff := cmp.Diff(want, config.Config); diff != "" {
		t.Errorf("%v: configuration differs (-want +got):\n%s", m.RepoTags, diff)
	}
	var digests []string
	for _, name := range m.Layers {
		sum := sha256.Sum256(files[name].content)
		digests = append(digests, "sha256:"+hex.EncodeToString(sum[:]))
	}
	if diff := cmp.Diff(config.RootFS.DiffIDs, digests); diff != "" {
		t.Errorf("%v: digests differ (-in the configuration +of the layers):\n%s", m.RepoTags, diff)
	}
}

func TestArchiveLayer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rootfs.tar")
	if err := os.WriteFile(path, []byte("a tar archive, byte by byte"), 0o644); err != nil {
		t.Fatal(err)
	}
	files := read(t, write(t, Image{Names: []string{"x:1"}, Layers: []*Layer{ArchiveLayer(path)}}))
	for name, f := range files {
		if filepath.Base(name) == "layer.tar" && string(f.content) != "a tar archive, byte by byte" {
			t.Errorf("the layer is %q", f.content)
		}
	}
}

func TestErrorsNameTheFile(t *testing.T) {
	img := Image{Names: []string{"x:1"}, Layers: []*Layer{NewLayer().AddFile("/bin/tool", "/nowhere/tool")}}
	err := Write(io.Discard, img)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("error %v, want that the file is missing", err)
	}
	if want := "image [x:1]: layer: /bin/tool: open /nowhere/tool: no such file or directory"; err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
}
