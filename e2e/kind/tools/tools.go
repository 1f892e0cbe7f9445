// Package tools makes the image that test pods run: curl, busybox, and the test application as its entry point.
package tools

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/culvert-mesh/culvert/e2e/kind/artifact"
	"github.com/culvert-mesh/culvert/e2e/kind/binaries"
	"github.com/culvert-mesh/culvert/e2e/kind/image"
)

// Image is the image's name. It is in every node already: pods need imagePullPolicy IfNotPresent or Never.
const Image = "culvert.test/tools:e2e"

// Archive returns the path of an archive with the image. source is the folder e2e/kind, and debian has the files of Debian
// in its folder tools.
func Archive(ctx context.Context, store *artifact.Store, source, debian string) (string, error) {
	key, err := artifact.NewInputs().Add("from", debian, runtime.Version()).
		AddFS(os.DirFS(source), "app/*.go", "image/*.go", "tools/tools.go").Key()
	if err != nil {
		return "", err
	}
	dir, err := store.Get(ctx, "tools", key, func(ctx context.Context, dir string) error {
		app := filepath.Join(dir, "app")
		if err := binaries.Compile(ctx, source, "./app", app, ""); err != nil {
			return err
		}
		img, err := toolsImage(app, filepath.Join(debian, "tools"))
		if err != nil {
			return err
		}
		return image.WriteFile(filepath.Join(dir, "image.tar"), img)
	})
	if err != nil {
		return "", fmt.Errorf("tools image: %w", err)
	}
	return filepath.Join(dir, "image.tar"), nil
}

func toolsImage(app, files string) (image.Image, error) {
	debian := image.NewLayer().
		AddDir("/tmp", fs.ModeSticky|0o777).
		AddContent("/etc/passwd", []byte("root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"), 0o644).
		AddContent("/etc/group", []byte("root:x:0:\nnogroup:x:65534:\n"), 0o644)
	if err := debian.AddTree(files); err != nil {
		return image.Image{}, err
	}
	return image.Image{
		Names:  []string{Image},
		Layers: []*image.Layer{debian, image.NewLayer().AddFile("/usr/local/bin/app", app)},
		Config: image.Config{
			Entrypoint: []string{"/usr/local/bin/app"},
			Cmd:        []string{"serve"},
			Env:        []string{"PATH=/usr/local/bin:/usr/bin:/bin"},
		},
	}, nil
}
