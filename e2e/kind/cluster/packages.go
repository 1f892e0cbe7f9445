package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"slices"
	"time"
)

// needed maps programs that making a cluster takes to the Debian packages that have them.
func needed(isolated bool) map[string]string {
	programs := map[string]string{
		"debootstrap":            "debootstrap",
		"update-ca-certificates": "ca-certificates",
		"tar":                    "tar",
	}
	if !isolated {
		return programs // docker is the machine's own
	}
	maps.Copy(programs, map[string]string{
		"dockerd":    "docker.io",
		"docker":     "docker.io",
		"containerd": "containerd",
		"runc":       "runc",
		"iptables":   "iptables",
		"nsenter":    "util-linux",
	})
	return programs
}

// missingPackages returns the packages of programs that lookPath does not find, sorted.
func missingPackages(programs map[string]string, lookPath func(string) (string, error)) []string {
	var missing []string
	for program, pkg := range programs {
		if _, err := lookPath(program); err != nil && !slices.Contains(missing, pkg) {
			missing = append(missing, pkg)
		}
	}
	slices.Sort(missing)
	return missing
}

// installPackages installs what is missing, with apt-get.
func (c *Cluster) installPackages(ctx context.Context) error {
	missing := missingPackages(needed(c.isolated()), exec.LookPath)
	if len(missing) == 0 {
		return nil
	}
	c.log.Info("installing Debian packages", "packages", missing)
	restore, err := forbidServices()
	if err != nil {
		return err
	}
	defer restore()
	apt := command{env: []string{"DEBIAN_FRONTEND=noninteractive"}, limit: 15 * time.Minute}
	if _, err := apt.run(ctx, "apt-get", "update"); err != nil {
		return fmt.Errorf("cluster: update the package lists: %w", err)
	}
	args := append([]string{"install", "--yes", "--no-install-recommends"}, missing...)
	if _, err := apt.run(ctx, "apt-get", args...); err != nil {
		return fmt.Errorf("cluster: install %v; install what has these programs by hand: %w", missing, err)
	}
	return nil
}

// forbidServices keeps packages from starting what they install: a docker daemon in the machine's own network
// namespace would change its firewall rules. A machine's own policy is left as it is.
func forbidServices() (restore func(), err error) {
	const policy = "/usr/sbin/policy-rc.d"
	f, err := os.OpenFile(policy, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cluster: forbid starting services: %w", err)
	}
	_, writeErr := f.WriteString("#!/bin/sh\n# Temporary, of Culvert's e2e/kind: nothing starts while it installs packages.\nexit 101\n")
	restore = func() { _ = os.Remove(policy) }
	if err := errors.Join(writeErr, f.Close()); err != nil {
		restore()
		return nil, fmt.Errorf("cluster: forbid starting services: %w", err)
	}
	return restore, nil
}
