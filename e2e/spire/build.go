// Package spire builds SPIRE's server and agent, for tests of agent/identity/spiffe against them. It is a module of its
// own because SPIRE brings along the client libraries of every cloud, which Culvert's module must not know.
//
// Run its tests with `go test -parallel 6` in this folder: README.md tells what they prove.
package spire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	// It keeps SPIRE's version in go.mod.
	_ "github.com/spiffe/spire/pkg/common/version"

	"github.com/culvert-mesh/culvert/e2e/kind/artifact"
)

// buildTimeout bounds one program's build: ten minutes of two cores' time if nothing is cached.
const buildTimeout = time.Hour

// kept is how long another version stays in the cache: each has 230 MB.
const kept = 7 * 24 * time.Hour

const module = "github.com/spiffe/spire"

// plugins is the file that lists the server's plugins for upstream authorities. The one for EJBCA needs a module that
// not every proxy serves.
const (
	plugins = "pkg/server/catalog/upstreamauthority.go"
	without = "ejbca"
)

// Build returns a folder with spire-server and spire-agent, of the version that this module's go.mod requires. It builds
// them if the cache lacks them, which takes minutes and a C compiler.
func Build(ctx context.Context, store *artifact.Store) (string, error) {
	source, version, err := download(ctx)
	if err != nil {
		return "", fmt.Errorf("SPIRE: %w", err)
	}
	key, err := artifact.NewInputs().Add("spire", version, runtime.Version(), runtime.GOARCH, without, "cgo").Key()
	if err != nil {
		return "", err
	}
	place, err := store.Get(ctx, "spire", key, func(ctx context.Context, out string) error {
		return compile(ctx, source, out)
	})
	if err != nil {
		return "", err
	}
	return place, store.Prune("spire", place, kept)
}

// download returns SPIRE's sources, which must not be written to.
func download(ctx context.Context) (dir, version string, err error) {
	out, err := exec.CommandContext(ctx, "go", "mod", "download", "-json", module).Output()
	var got struct{ Dir, Version, Error string }
	if e := json.Unmarshal(out, &got); err != nil || e != nil || got.Error != "" {
		return "", "", fmt.Errorf("go mod download: %w: %s", errors.Join(err, e), got.Error)
	}
	return got.Dir, got.Version, nil
}

// compile builds in a copy: with SPIRE's own go.mod, so that its dependencies are those it was released with, and because
// `go build -overlay` refuses to replace files of the module cache.
func compile(ctx context.Context, source, out string) error {
	copied, err := os.MkdirTemp("", "spire-source-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(copied)
	if err := os.CopyFS(copied, os.DirFS(source)); err != nil {
		return fmt.Errorf("copy the sources: %w", err)
	}
	if err := drop(filepath.Join(copied, plugins), without); err != nil {
		return err
	}
	return errors.Join(
		// Its database is SQLite, which is written in C.
		goBuild(ctx, copied, "./cmd/spire-server", out, "CGO_ENABLED=1"),
		goBuild(ctx, copied, "./cmd/spire-agent", out, "CGO_ENABLED=0"))
}

// goBuild builds with the Go that runs this, which is new enough and is there.
func goBuild(ctx context.Context, dir, pkg, out string, env ...string) error {
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out+"/", pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), append(env, "GOFLAGS=", "GOWORK=off", "GOTOOLCHAIN="+runtime.Version())...)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, errors.Join(err, ctx.Err()), output)
	}
	return nil
}

// drop removes the lines of a file that contain text.
func drop(file, text string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var kept [][]byte
	lines := bytes.SplitAfter(content, []byte("\n"))
	for _, line := range lines {
		if !bytes.Contains(line, []byte(text)) {
			kept = append(kept, line)
		}
	}
	if len(kept) == len(lines) {
		return fmt.Errorf("%s has no %q to leave out", file, text)
	}
	return os.WriteFile(file, bytes.Join(kept, nil), 0o644)
}
