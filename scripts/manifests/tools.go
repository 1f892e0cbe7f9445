package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// tools are the programs that the checks run.
type tools struct{ kubectl, helm, etcd, apiserver string }

func findTools(ctx context.Context) (tools, error) {
	t := tools{kubectl: os.Getenv("KUBECTL"), helm: os.Getenv("HELM")}
	if t.kubectl == "" {
		dir := os.Getenv("CULVERT_E2E_BINARIES")
		if dir == "" {
			out, err := output(ctx, "", "go", "run", "./e2e/kind", "binaries")
			if err != nil {
				return t, fmt.Errorf("building Kubernetes: %w", err)
			}
			dir = strings.TrimSpace(out)
		}
		t.kubectl, t.etcd, t.apiserver = filepath.Join(dir, "kubectl"), filepath.Join(dir, "etcd"), filepath.Join(dir, "kube-apiserver")
	}
	if t.helm == "" {
		helm, err := buildHelm(ctx)
		if err != nil {
			return t, fmt.Errorf("building helm: %w", err)
		}
		t.helm = helm
	}
	return t, nil
}

// buildHelm builds the helm of scripts/tools/helm into the cache folder. Go's own cache makes that quick the second time.
func buildHelm(ctx context.Context) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir, err := filepath.Abs("scripts/tools/helm")
	if err != nil {
		return "", err
	}
	helm := filepath.Join(cache, "culvert-tools", "helm")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", helm, "helm.sh/helm/v4/cmd/helm")
	cmd.Dir = dir
	// GOFLAGS of the caller are for this module; its Go is newer than what helm asks for.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off")
	if v, ok := strings.CutPrefix(runtime.Version(), "go"); ok {
		cmd.Env = append(cmd.Env, "GOTOOLCHAIN=go"+strings.Fields(v)[0])
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return helm, nil
}

// moduleRoot is the folder of the checkout's go.mod, or ".".
func moduleRoot(ctx context.Context) string {
	out, err := output(ctx, "", "go", "env", "GOMOD")
	if err != nil || !strings.HasSuffix(strings.TrimSpace(out), "go.mod") {
		return "."
	}
	return filepath.Dir(strings.TrimSpace(out))
}

// output runs a program and returns what it prints; an error has what it printed as errors.
func output(ctx context.Context, stdin, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "),
			errors.Join(err, ctx.Err()), strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// kubectl runs kubectl against one cluster.
type kubectl struct{ path, kubeconfig string }

func (k kubectl) run(ctx context.Context, stdin string, args ...string) (string, error) {
	if k.kubeconfig != "" {
		args = append([]string{"--kubeconfig", k.kubeconfig}, args...)
	}
	return output(ctx, stdin, k.path, args...)
}

// text is "" without an error.
func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
