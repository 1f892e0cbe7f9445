package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/e2e/kind/node"
)

// Paths of our docker daemon. Its socket is not the ordinary one: somebody may have a docker of their own.
func socketPath() string   { return filepath.Join(runDir, "docker.sock") }
func execRoot() string     { return filepath.Join(runDir, "docker") }
func pidPath() string      { return filepath.Join(runDir, "docker.pid") }
func daemonLog() string    { return filepath.Join(runDir, "dockerd.log") }
func runcPath() string     { return filepath.Join(runDir, "runc") }
func clientConfig() string { return filepath.Join(runDir, "docker-client") }
func cgroupParent() string { return "culvert-e2e" }

// dockerEnv is the environment that makes docker, and kind through it, talk to our daemon.
func (c *Cluster) dockerEnv() []string {
	if !c.isolated() {
		return nil
	}
	return []string{"DOCKER_HOST=unix://" + socketPath(), "DOCKER_CONFIG=" + clientConfig(), "DOCKER_CONTEXT="}
}

// docker runs docker's client.
func (c *Cluster) docker(ctx context.Context, cmd command, args ...string) (string, error) {
	cmd.env = append(cmd.env, c.dockerEnv()...)
	return cmd.run(ctx, "docker", args...)
}

// daemonConfig returns dockerd's configuration.
func daemonConfig(dataRoot string) ([]byte, error) {
	return json.MarshalIndent(map[string]any{
		"hosts":     []string{"unix://" + socketPath()},
		"data-root": dataRoot,
		"exec-root": execRoot(),
		"pidfile":   pidPath(),
		// Our own, so that what is left of the nodes can be found and removed.
		"cgroup-parent":    "/" + cgroupParent(),
		"exec-opts":        []string{"native.cgroupdriver=cgroupfs"},
		"runtimes":         map[string]any{"e2e": map[string]string{"path": runcPath()}},
		"default-runtime":  "e2e",
		"storage-driver":   "overlay2",
		"log-level":        "warn",
		"shutdown-timeout": 5,
		// Negative ones take CAP_SYS_RESOURCE.
		"oom-score-adjust": 0,
	}, "", "\t")
}

// runcWrapper returns a runc that corrects the capabilities of privileged containers. Docker asks for all that it knows of:
// too many where this machine lacks one, and too few, because Debian's docker is older than CAP_BPF.
func runcWrapper(runc string, haveSysResource bool) string {
	capabilities := []string{"CAP_BPF", "CAP_PERFMON", "CAP_CHECKPOINT_RESTORE"}
	if haveSysResource {
		capabilities = append(capabilities, "CAP_SYS_RESOURCE")
	}
	return fmt.Sprintf(`#!/bin/sh
# runc for the nodes' containers: what privileged ones get instead of CAP_SYS_RESOURCE.
previous=
for argument; do
	file=
	case $previous in
	--bundle) file=$argument/config.json ;; # create
	--process) file=$argument ;;            # exec
	esac
	[ -f "$file" ] && sed -i 's/"CAP_SYS_RESOURCE"/"%s"/g' "$file"
	previous=$argument
done
exec %s "$@"
`, strings.Join(capabilities, `","`), runc)
}

// haveCapability reports whether this process may give that capability to others.
func haveCapability(number uintptr) (bool, error) {
	got, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, number, 0, 0, 0)
	if err != nil {
		return false, fmt.Errorf("cluster: read the capability bounding set: %w", err)
	}
	return got == 1, nil
}

// startDocker starts our daemon in the network namespace and waits until it answers.
func (c *Cluster) startDocker(ctx context.Context, dataRoot string) error {
	if err := writeDaemonFiles(dataRoot); err != nil {
		return err
	}
	log, err := os.Create(daemonLog())
	if err != nil {
		return fmt.Errorf("cluster: log of dockerd: %w", err)
	}
	defer log.Close()
	// It outlives this process, so it is no child of ctx. Neither `ip netns exec` would do: it hides the cgroups.
	cmd := exec.Command("nsenter", "--net="+c.Netns(), "--", "dockerd", "--config-file="+filepath.Join(runDir, "daemon.json"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = withoutPrefix(os.Environ(), "DOCKER_")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cluster: start dockerd: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if err := c.waitDocker(ctx, ended); err != nil {
		said, _ := os.ReadFile(daemonLog())
		return fmt.Errorf("cluster: dockerd does not answer: %w\n%s", err, lastLines(string(said), 20))
	}
	return nil
}

func (c *Cluster) waitDocker(ctx context.Context, ended <-chan error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("no answer within a minute"))
	defer cancel()
	for {
		_, err := c.docker(ctx, command{limit: 10 * time.Second}, "version")
		if err == nil {
			return nil
		}
		select {
		case ending := <-ended:
			return fmt.Errorf("it ended: %v", ending)
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func writeDaemonFiles(dataRoot string) error {
	runc, err := exec.LookPath("runc")
	if err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	have, err := haveCapability(unix.CAP_SYS_RESOURCE)
	if err != nil {
		return err
	}
	config, err := daemonConfig(dataRoot)
	if err != nil {
		return fmt.Errorf("cluster: dockerd's configuration: %w", err)
	}
	err = errors.Join(
		os.MkdirAll(clientConfig(), 0o700),
		os.WriteFile(filepath.Join(runDir, "daemon.json"), config, 0o600),
		os.WriteFile(runcPath(), []byte(runcWrapper(runc, have)), 0o755),
	)
	if err != nil {
		return fmt.Errorf("cluster: files of dockerd: %w", err)
	}
	return nil
}

// loadNodeImage gives our daemon the node image and removes older ones.
func (c *Cluster) loadNodeImage(ctx context.Context, build node.Build) error {
	tags, err := c.docker(ctx, command{}, "image", "ls", "--format={{.Repository}}:{{.Tag}}")
	if err != nil {
		return fmt.Errorf("cluster: list images: %w", err)
	}
	for tag := range strings.FieldsSeq(tags) {
		if tag == build.Image {
			return nil
		}
		if _, err := c.docker(ctx, command{}, "image", "rm", "--force", tag); err != nil {
			return fmt.Errorf("cluster: remove old image %s: %w", tag, err)
		}
	}
	c.log.Info("loading the node image", "image", build.Image)
	if _, err := c.docker(ctx, command{limit: 5 * time.Minute}, "image", "load", "--quiet", "--input="+build.Archive); err != nil {
		return fmt.Errorf("cluster: load the node image: %w", err)
	}
	return nil
}

// withoutPrefix returns the variables whose names do not begin with prefix.
func withoutPrefix(env []string, prefix string) []string {
	var kept []string
	for _, v := range env {
		if !strings.HasPrefix(v, prefix) {
			kept = append(kept, v)
		}
	}
	return kept
}
