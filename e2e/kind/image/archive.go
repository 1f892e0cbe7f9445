// Package image writes container images from files, without a container engine: archives as `docker save` makes
// them, which docker and containerd load.
package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"time"
)

// Image is an image of one architecture, that of this machine.
type Image struct {
	Names  []string // with tags: example.org/name:tag
	Layers []*Layer // images that share a Layer share it in the archive
	Config Config
}

// Config is how containers of the image run.
type Config struct {
	Entrypoint []string `json:"Entrypoint,omitempty"`
	Cmd        []string `json:"Cmd,omitempty"`
	Env        []string `json:"Env,omitempty"`
	User       string   `json:"User,omitempty"`
	WorkingDir string   `json:"WorkingDir,omitempty"`
	StopSignal string   `json:"StopSignal,omitempty"`
}

// manifest is an entry of the archive's manifest.json.
type manifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// configFile is the image's configuration, as the OCI image specification has it.
type configFile struct {
	Created      time.Time `json:"created"`
	Architecture string    `json:"architecture"`
	OS           string    `json:"os"`
	Config       Config    `json:"config"`
	RootFS       rootFS    `json:"rootfs"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

// WriteFile writes images to one archive of that path.
func WriteFile(path string, images ...Image) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	defer f.Close()
	out := bufio.NewWriterSize(f, 1<<20)
	if err := Write(out, images...); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("image: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("image: %w", err)
	}
	return nil
}

// Write writes images to one archive. The same images give the same bytes.
func Write(w io.Writer, images ...Image) error {
	a := &archive{tar: tar.NewWriter(w), written: map[string]bool{}}
	var manifests []manifest
	for _, img := range images {
		m, err := a.addImage(img)
		if err != nil {
			return fmt.Errorf("image %v: %w", img.Names, err)
		}
		manifests = append(manifests, m)
	}
	content, err := json.Marshal(manifests)
	if err != nil {
		return fmt.Errorf("image: manifest: %w", err)
	}
	if err := a.addContent("manifest.json", content); err != nil {
		return fmt.Errorf("image: manifest: %w", err)
	}
	if err := a.tar.Close(); err != nil {
		return fmt.Errorf("image: finish the archive: %w", err)
	}
	return nil
}

// archive is an archive that is being written.
type archive struct {
	tar     *tar.Writer
	written map[string]bool // names in the archive
}

func (a *archive) addImage(img Image) (manifest, error) {
	config := configFile{
		Created: epoch(), Architecture: runtime.GOARCH, OS: "linux", Config: img.Config,
		RootFS: rootFS{Type: "layers", DiffIDs: []string{}},
	}
	m := manifest{RepoTags: img.Names, Layers: []string{}}
	for _, l := range img.Layers {
		digest, name, err := a.addLayer(l)
		if err != nil {
			return manifest{}, err
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, "sha256:"+digest)
		m.Layers = append(m.Layers, name)
	}
	content, err := json.Marshal(config)
	if err != nil {
		return manifest{}, err
	}
	sum := sha256.Sum256(content)
	m.Config = hex.EncodeToString(sum[:]) + ".json"
	return m, a.addContent(m.Config, content)
}

// addLayer writes a layer once. Its name contains its digest and its header its size, so it is made
// twice: once to measure it.
func (a *archive) addLayer(l *Layer) (digest, name string, err error) {
	sum, size := sha256.New(), new(counter)
	if err := l.write(io.MultiWriter(sum, size)); err != nil {
		return "", "", err
	}
	digest = hex.EncodeToString(sum.Sum(nil))
	name = path.Join(digest, "layer.tar")
	if a.written[name] {
		return digest, name, nil
	}
	if err := a.addHeader(name, int64(*size)); err != nil {
		return "", "", err
	}
	return digest, name, l.write(a.tar)
}

func (a *archive) addContent(name string, content []byte) error {
	if a.written[name] {
		return nil
	}
	if err := a.addHeader(name, int64(len(content))); err != nil {
		return err
	}
	_, err := io.Copy(a.tar, bytes.NewReader(content))
	return err
}

func (a *archive) addHeader(name string, size int64) error {
	a.written[name] = true
	return a.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, ModTime: epoch()})
}

// counter counts what is written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// epoch is the time of everything in an archive, so that it depends on nothing but contents.
func epoch() time.Time { return time.Unix(0, 0).UTC() }
