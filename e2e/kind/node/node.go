// Package node makes the image of the cluster's nodes: Debian with systemd and containerd, what kind expects of a node, our
// build of Kubernetes, and the images that kubeadm asks for. Nothing of it is pulled from a registry of images.
package node

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/culvert-mesh/culvert/e2e/kind/artifact"
	"github.com/culvert-mesh/culvert/e2e/kind/binaries"
	"github.com/culvert-mesh/culvert/e2e/kind/image"
)

// buildTimeout bounds the steps that wait for a mirror.
const buildTimeout = 20 * time.Minute

// files are what a node has beside Debian, kind's files and Kubernetes, and the script that makes its Debian.
//
//go:embed files
var files embed.FS

// Build is what is made for the nodes.
type Build struct {
	Image   string // name of the nodes' image
	Archive string // that image, for `docker load`
}

// Make makes the image, unless it is in the cache, from what Debian made. source is the folder e2e/kind.
func Make(ctx context.Context, store *artifact.Store, source, debian string, set binaries.Set) (Build, error) {
	key, err := artifact.NewInputs().Add("from", debian, set.Key, runtime.Version()).
		AddFS(files, "files/e2e-*", "files/*.yaml").
		AddFS(os.DirFS(source), "node/images.go", "node/node.go", "image/*.go", "pause/*.go").Key()
	if err != nil {
		return Build{}, err
	}
	name := "culvert-e2e/node:" + key
	dir, err := store.Get(ctx, "node", key, func(ctx context.Context, dir string) error {
		return assemble(ctx, dir, source, debian, name, set)
	})
	if err != nil {
		return Build{}, fmt.Errorf("node image: %w", err)
	}
	return Build{Image: name, Archive: filepath.Join(dir, archiveName)}, nil
}

// archiveName is the file in a node artifact.
const archiveName = "image.tar"

// Debian returns a folder with what is made from Debian packages and changes rarely: rootfs, for nodes, and
// tools, the files of the tools image.
func Debian(ctx context.Context, store *artifact.Store, source string) (string, error) {
	kind, err := kindFiles(ctx, source)
	if err != nil {
		return "", fmt.Errorf("node image: %w", err)
	}
	key, err := artifact.NewInputs().AddFS(files, "files/debian.sh").Add("kind", filepath.Base(kind.module)).Key()
	if err != nil {
		return "", err
	}
	return store.Get(ctx, "debian", key, func(ctx context.Context, dir string) error {
		script, err := files.ReadFile("files/debian.sh")
		if err != nil {
			return err
		}
		path := filepath.Join(dir, "debian.sh")
		if err := os.WriteFile(path, script, 0o755); err != nil {
			return err
		}
		return run(ctx, "", "bash", path, dir, kind.files)
	})
}

// kindModule is where kind's source is on this machine.
type kindModule struct {
	module string // folder with name and version
	files  string // what a node image is made from
}

// kindFiles finds the files in the module cache, in the version of kind that e2e/kind/cli requires.
func kindFiles(ctx context.Context, source string) (kindModule, error) {
	const module = "sigs.k8s.io/kind"
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", module)
	cmd.Dir = filepath.Join(source, "cli")
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	out, err := cmd.Output()
	var answer struct{ Dir, Error string }
	if decodeErr := json.Unmarshal(out, &answer); decodeErr != nil || answer.Dir == "" {
		return kindModule{}, fmt.Errorf("find the source of %s: %w %s", module, errors.Join(err, decodeErr), answer.Error)
	}
	return kindModule{module: answer.Dir, files: filepath.Join(answer.Dir, "images", "base", "files")}, nil
}

// assemble writes the archive with the image of that name into dir.
func assemble(ctx context.Context, dir, source, debian, name string, set binaries.Set) error {
	work := filepath.Join(dir, "work")
	rootfs, pause := filepath.Join(work, "rootfs"), filepath.Join(work, "pause")
	if err := binaries.Compile(ctx, source, "./pause", pause, ""); err != nil {
		return err
	}
	images, err := kubernetesImages(debian, pause, set)
	if err != nil {
		return err
	}
	if err := run(ctx, dir, "cp", "--archive", filepath.Join(debian, "rootfs"), rootfs); err != nil {
		return err
	}
	if err := addFiles(rootfs, set); err != nil {
		return err
	}
	if err := image.WriteFile(filepath.Join(rootfs, "kind", "e2e", "images.tar"), images...); err != nil {
		return err
	}
	if err := run(ctx, dir, "tar", "--create", "--numeric-owner", "--file", rootfs+".tar", "--directory", rootfs, "."); err != nil {
		return err
	}
	if err := image.WriteFile(filepath.Join(dir, archiveName), nodeImage(name, rootfs+".tar")); err != nil {
		return err
	}
	return os.RemoveAll(work)
}

// addFiles writes what comes on top of Debian and kind's files.
func addFiles(dir string, set binaries.Set) error {
	for path, name := range map[string]string{
		"etc/systemd/system/e2e-images.service": "e2e-images.service",
		"etc/systemd/system/e2e-routes.service": "e2e-routes.service",
		"etc/sysctl.d/20-e2e.conf":              "e2e-sysctl.conf",
		"usr/local/bin/e2e-routes":              "e2e-routes",
		"kind/manifests/default-storage.yaml":   "default-storage.yaml",
	} {
		content, err := files.ReadFile("files/" + name)
		if err != nil {
			return err
		}
		mode := os.FileMode(0o644)
		if name == "e2e-routes" {
			mode = 0o755
		}
		if err := writeFile(filepath.Join(dir, path), content, mode); err != nil {
			return err
		}
	}
	for _, unit := range []string{"e2e-images.service", "e2e-routes.service"} {
		if err := link(filepath.Join(dir, "etc/systemd/system/multi-user.target.wants", unit), "../"+unit); err != nil {
			return err
		}
	}
	if err := writeFile(filepath.Join(dir, "kind/version"), []byte(binaries.KubernetesVersion), 0o644); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "kind/e2e"), 0o755); err != nil {
		return err
	}
	return installKubernetes(filepath.Join(dir, "usr/bin"), set)
}

// installKubernetes installs what runs on the node itself, one binary under three names.
func installKubernetes(bin string, set binaries.Set) error {
	content, err := os.ReadFile(set.Path("kubelet"))
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(bin, "kubelet"), content, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"kubeadm", "kubectl"} {
		if err := link(filepath.Join(bin, name), "kubelet"); err != nil {
			return err
		}
	}
	return nil
}

func writeFile(path string, content []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, content, mode)
}

func link(path, target string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.Symlink(target, path)
}

// run runs a command and reports its output if it fails.
func run(ctx context.Context, dir, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.WaitDelay = time.Second
	output, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	const tail = 4000 // debootstrap prints a line for each package
	if len(output) > tail {
		output = output[len(output)-tail:]
	}
	return fmt.Errorf("%s: %w\n%s", name, errors.Join(err, ctx.Err()), output)
}
