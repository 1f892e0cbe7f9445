// Package binaries builds the programs that a cluster consists of, each from a Go module of its own below e2e/kind, and
// keeps them in the cache. Nothing is downloaded but Go modules.
package binaries

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/e2e/kind/artifact"
)

// KubernetesVersion is the version that e2e/kind/kubernetes/go.mod requires. A test keeps the two the same.
const KubernetesVersion = "v1.34.4"

// buildTimeout bounds the build of one module. Kubernetes takes a quarter of an hour of two cores' time.
const buildTimeout = time.Hour

// module is a Go module below e2e/kind and the names that its one binary goes by.
type module struct {
	dir     string
	names   []string
	ldflags string
}

func modules() []module {
	return []module{
		{dir: "kubernetes", names: kubernetesNames(), ldflags: kubernetesVersionFlags()},
		{dir: "etcd", names: []string{"etcd"}},
		{dir: "coredns", names: []string{"coredns"}},
		{dir: "cli", names: []string{"kind"}},
	}
}

func kubernetesNames() []string {
	return []string{
		"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubeadm", "kubectl",
	}
}

// kubernetesVersionFlags tells the programs their version, as Kubernetes' own build does. Without it they claim to be
// v0.0.0, and kubeadm refuses to work with them.
func kubernetesVersionFlags() string {
	numbers := strings.Split(strings.TrimPrefix(KubernetesVersion, "v"), ".")
	var flags []string
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		for _, v := range [][2]string{
			{"gitVersion", KubernetesVersion}, {"gitMajor", numbers[0]}, {"gitMinor", numbers[1]}, {"gitTreeState", "archive"},
		} {
			flags = append(flags, fmt.Sprintf("-X %s.%s=%s", pkg, v[0], v[1]))
		}
	}
	return strings.Join(flags, " ")
}

// Set is a folder with every program under its name.
type Set struct {
	Dir string
	Key string
}

// Path returns the path of a program.
func (s Set) Path(name string) string { return filepath.Join(s.Dir, name) }

// Build returns all programs of the modules below source, the folder e2e/kind, and builds what the cache lacks.
func Build(ctx context.Context, store *artifact.Store, source string) (Set, error) {
	var places []string
	for _, m := range modules() {
		place, err := m.build(ctx, store, source)
		if err != nil {
			return Set{}, fmt.Errorf("binaries: %w", err)
		}
		places = append(places, place)
	}
	key, err := artifact.NewInputs().Add("places", places...).Key()
	if err != nil {
		return Set{}, err
	}
	dir, err := store.Get(ctx, "binaries", key, func(_ context.Context, dir string) error { return linkAll(dir, places) })
	return Set{Dir: dir, Key: key}, err
}

// Kind returns the path of kind's command line alone, which takes seconds to build.
func Kind(ctx context.Context, store *artifact.Store, source string) (string, error) {
	for _, m := range modules() {
		if m.dir != "cli" {
			continue
		}
		place, err := m.build(ctx, store, source)
		return filepath.Join(place, "kind"), err
	}
	return "", errors.New("binaries: no module for kind")
}

// linkAll links everything that is in the places into dir.
func linkAll(dir string, places []string) error {
	for _, place := range places {
		entries, err := os.ReadDir(place)
		if err != nil {
			return err
		}
		for _, e := range entries {
			target, err := filepath.EvalSymlinks(filepath.Join(place, e.Name()))
			if err != nil {
				return err
			}
			if err := os.Symlink(target, filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// build returns the folder with the module's binary and its names.
func (m module) build(ctx context.Context, store *artifact.Store, source string) (string, error) {
	dir := filepath.Join(source, m.dir)
	key, err := artifact.NewInputs().
		AddFS(os.DirFS(dir), "*.go", "go.mod", "go.sum").
		Add("build", append([]string{runtime.Version(), runtime.GOARCH, m.ldflags}, m.names...)...).Key()
	if err != nil {
		return "", err
	}
	return store.Get(ctx, m.dir, key, func(ctx context.Context, out string) error { return m.compile(ctx, dir, out) })
}

func (m module) compile(ctx context.Context, dir, out string) error {
	if err := Compile(ctx, dir, ".", filepath.Join(out, m.names[0]), m.ldflags); err != nil {
		return err
	}
	for _, name := range m.names[1:] {
		if err := os.Symlink(m.names[0], filepath.Join(out, name)); err != nil {
			return err
		}
	}
	return nil
}

// Compile builds the command pkg, as seen from dir, as a static binary without symbols.
func Compile(ctx context.Context, dir, pkg, out, ldflags string) error {
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "build", "-mod=readonly", "-trimpath", "-buildvcs=false",
		"-ldflags", strings.TrimSpace("-s -w "+ldflags), "-o", out, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if version := runtime.Version(); strings.HasPrefix(version, "go1.") {
		// The module's go.mod may ask for an older Go; this one compiles the rest of the project as well.
		cmd.Env = append(cmd.Env, "GOTOOLCHAIN="+strings.Fields(version)[0])
	}
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s in %s: %w\n%s", pkg, dir, errors.Join(err, ctx.Err()), output)
	}
	return nil
}
