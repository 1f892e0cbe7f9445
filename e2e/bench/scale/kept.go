package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// seedVersion changes when the objects that seed makes do.
const seedVersion = 3

// kept is where etcd's data of a seeded cluster is kept for later runs. The API server wrote all of it.
type kept struct{ folder string }

// keptCluster returns where a cluster of this size, made by this API server, is kept. It is nowhere without --keep.
func keptCluster(o options) (kept, error) {
	if o.keep == "" {
		return kept{}, nil
	}
	server, err := filepath.EvalSymlinks(filepath.Join(o.binaries, "kube-apiserver"))
	if err != nil {
		return kept{}, fmt.Errorf("kept cluster: %w", err)
	}
	info, err := os.Stat(server)
	if err != nil {
		return kept{}, fmt.Errorf("kept cluster: %w", err)
	}
	sum := sha256.Sum256(fmt.Appendln(nil, seedVersion, server, info.Size(), info.ModTime().UnixNano(),
		o.pods, o.localPods, o.nodes, o.namespaces, o.services, o.policies))
	return kept{filepath.Join(o.keep, fmt.Sprintf("etcd-%x", sum[:8]))}, nil
}

// restore copies what is kept to where etcd will look, and reports whether there was anything.
func (k kept) restore(to string) (bool, error) {
	if k.folder == "" {
		return false, nil
	}
	if _, err := os.Stat(k.folder); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err := os.CopyFS(to, os.DirFS(k.folder)); err != nil {
		return false, fmt.Errorf("kept cluster: %w", err)
	}
	return true, os.Chmod(to, 0o700)
}

// save keeps the data of an etcd that is not running: the whole of it or nothing.
func (k kept) save(from string) error {
	if k.folder == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(k.folder), 0o755); err != nil {
		return fmt.Errorf("kept cluster: %w", err)
	}
	part, err := os.MkdirTemp(filepath.Dir(k.folder), "part-")
	if err == nil {
		err = os.CopyFS(part, os.DirFS(from))
	}
	if err == nil {
		err = os.Rename(part, k.folder)
	}
	if err != nil {
		return fmt.Errorf("kept cluster: %w", errors.Join(err, os.RemoveAll(part)))
	}
	return nil
}
