package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	repository = "ghcr.io/culvert-mesh/culvert"
	source     = "https://github.com/culvert-mesh/culvert"
	binaries   = "usr/local/bin"
	// nobody runs what a manifest gives no user. The tunnel is that user; the agent's manifest says root.
	nobody = "65534:65534"
)

// image is the image of one architecture.
type image struct {
	arch string
	v1.Image
}

// epoch is the time of everything in an image, so that it depends on contents alone.
func epoch() time.Time { return time.Unix(0, 0).UTC() }

// assemble makes the image of the programs in dir.
func assemble(arch, version, dir string) (image, error) {
	content, err := packLayer(dir)
	if err != nil {
		return image{}, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return image{}, fmt.Errorf("layer: %w", err)
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.Append(img, mutate.Addendum{
		Layer: layer, History: v1.History{Created: v1.Time{Time: epoch()}, CreatedBy: "scripts/image"},
	}); err != nil {
		return image{}, fmt.Errorf("layer: %w", err)
	}
	img, err = mutate.ConfigFile(img, configFile(img, arch, version))
	if err != nil {
		return image{}, fmt.Errorf("configuration: %w", err)
	}
	return image{arch, img}, nil
}

// configFile completes the configuration that img has by its layers.
func configFile(img v1.Image, arch, version string) *v1.ConfigFile {
	config, err := img.ConfigFile()
	if err != nil { // of an image in memory, it is never
		config = &v1.ConfigFile{}
	}
	config = config.DeepCopy()
	config.Architecture, config.OS, config.Created = arch, "linux", v1.Time{Time: epoch()}
	config.Config = v1.Config{
		Entrypoint: []string{"/" + path.Join(binaries, "culvert")},
		Env:        []string{"PATH=/" + binaries},
		User:       nobody,
		WorkingDir: "/",
		Labels: map[string]string{
			"org.opencontainers.image.title":    "culvert",
			"org.opencontainers.image.source":   source,
			"org.opencontainers.image.version":  version,
			"org.opencontainers.image.licenses": "Apache-2.0",
		},
	}
	return config
}

// packLayer packs the programs in dir, owned by root and executable, and the folders above them.
func packLayer(dir string) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, folder := range []string{"usr/", "usr/local/", binaries + "/"} {
		h := &tar.Header{Typeflag: tar.TypeDir, Name: folder, Mode: 0o755, ModTime: epoch()}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("layer: %w", err)
		}
	}
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		return nil, fmt.Errorf("layer: %w", err)
	}
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("layer: %w", err)
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: path.Join(binaries, e.Name()), Mode: 0o755, Size: int64(len(content)), ModTime: epoch()}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("layer: %w", err)
		}
		if _, err := w.Write(content); err != nil {
			return nil, fmt.Errorf("layer: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("layer: %w", err)
	}
	return b.Bytes(), nil
}

// writeArchive writes one image under the names that the manifests use: its version, and dev.
func writeArchive(file, version string, img image) error {
	refs := map[name.Reference]v1.Image{}
	for _, tag := range []string{version, "dev"} {
		ref, err := name.NewTag(repository + ":" + tag)
		if err != nil {
			return fmt.Errorf("name of the image: %w", err)
		}
		refs[ref] = img.Image
	}
	if err := tarball.MultiRefWriteToFile(file, refs); err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	return nil
}

// writeLayout writes all images into one index, and returns the digest that pins it in a registry.
func writeLayout(dir, version string, images []image) (string, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, img := range images {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        img.Image,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: img.arch}},
		})
	}
	digest, err := index.Digest()
	if err != nil {
		return "", fmt.Errorf("layout: %w", err)
	}
	// The layout's own index has one entry: the index of the architectures, by its tag.
	named := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
		Add:        index,
		Descriptor: v1.Descriptor{Annotations: map[string]string{"org.opencontainers.image.ref.name": version}},
	})
	if _, err := layout.Write(dir, named); err != nil {
		return "", fmt.Errorf("layout: %w", err)
	}
	return digest.String(), nil
}
