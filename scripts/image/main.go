// Command image makes the container image without a container engine: static binaries for amd64 and arm64 on an empty file
// system.
//
//	go run ./scripts/image -version v0.1.0
//
// It writes, below bin/,
//
//	culvert-image.tar   for this machine's architecture, as `docker save` would: docker load, ctr images import, kind load
//	culvert-image-oci/  both architectures, an OCI image layout: skopeo copy, crane push
//
// The same sources, Go and version give the same bytes.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
)

func main() {
	version := flag.String("version", "dev", "the image's tag, and what its programs say of themselves")
	out := flag.String("o", "bin", "folder to write to")
	native := flag.Bool("native", false, "only this machine's architecture, and no layout: for a cluster on this machine")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *version, *out, *native); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		stop()
		os.Exit(1)
	}
}

// architectures returns those the image is made for.
func architectures() []string { return []string{"amd64", "arm64"} }

func run(ctx context.Context, version, out string, native bool) (err error) {
	// What a registry takes as a tag.
	if !regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}$`).MatchString(version) {
		return fmt.Errorf("-version %q: cannot be an image's tag", version)
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return fmt.Errorf("folder for the image: %w", err)
	}
	// Beside the result, so that it can be moved there whole.
	dir, err := os.MkdirTemp(out, ".image-")
	if err != nil {
		return fmt.Errorf("folder for the image: %w", err)
	}
	defer func() {
		if rmErr := os.RemoveAll(dir); err == nil {
			err = rmErr
		}
	}()
	var images []image
	wanted := architectures()
	if native {
		wanted = []string{runtime.GOARCH}
	}
	for _, arch := range wanted {
		bin := filepath.Join(dir, arch)
		for _, program := range []string{"culvert", "culvert-cni"} {
			if err := build(ctx, arch, version, filepath.Join(bin, program), "./cmd/"+program); err != nil {
				return fmt.Errorf("building %s for %s: %w", program, arch, err)
			}
		}
		img, err := assemble(arch, version, bin)
		if err != nil {
			return fmt.Errorf("image for %s: %w", arch, err)
		}
		images = append(images, img)
	}
	archive, layout := filepath.Join(dir, "image.tar"), filepath.Join(dir, "oci")
	wrote := ""
	for _, img := range images {
		if img.arch == runtime.GOARCH {
			wrote = filepath.Join(out, "culvert-image.tar")
			if err := writeArchive(archive, version, img); err != nil {
				return err
			}
			if err := os.Rename(archive, wrote); err != nil {
				return fmt.Errorf("archive: %w", err)
			}
			fmt.Println(wrote)
		}
	}
	if wrote == "" {
		fmt.Fprintf(os.Stderr, "image: no archive: this machine is %s, the image is for %s\n", runtime.GOARCH, strings.Join(architectures(), " and "))
	}
	if native {
		return nil
	}
	digest, err := writeLayout(layout, version, images)
	if err != nil {
		return err
	}
	place := filepath.Join(out, "culvert-image-oci")
	if err := os.RemoveAll(place); err != nil {
		return fmt.Errorf("layout: %w", err)
	}
	if err := os.Rename(layout, place); err != nil {
		return fmt.Errorf("layout: %w", err)
	}
	fmt.Println(place, digest)
	return nil
}

// build makes a static binary in which nothing tells where and when it was built.
func build(ctx context.Context, arch, version, out, pkg string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", "-s -w -buildid= -X main.version="+version, "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOAMD64=v1", "GOARM64=v8.0", "GOFLAGS=-mod=readonly")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, output)
	}
	return nil
}
