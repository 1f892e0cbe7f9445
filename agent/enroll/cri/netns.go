package cri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Netns opens the network namespace of the pod with that UID. It is the runtime's word that it is the pod's: the
// caller proves it by the pod's addresses. The file's name is the path it was opened by.
func (r *Runtime) Netns(ctx context.Context, podUID string) (*os.File, error) {
	f, _, err := r.Locate(ctx, podUID)
	return f, err
}

// Locate is Netns that tells the sandbox's ID as well, by which the CNI plugin is asked about it.
func (r *Runtime) Locate(ctx context.Context, podUID string) (netns *os.File, sandbox string, err error) {
	if podUID == "" {
		return nil, "", errors.New("network namespace: pod has no UID")
	}
	item, err := r.find(ctx, podUID)
	if err != nil {
		return nil, "", err
	}
	f, err := r.open(ctx, item)
	return f, item.GetId(), err
}

// Current are the IDs of the ready sandboxes by their pods' UIDs, the newest of each.
func (r *Runtime) Current(ctx context.Context) (map[string]string, error) {
	items, err := r.list(ctx, nil)
	if err != nil {
		return nil, err
	}
	newest := map[string]*runtime.PodSandbox{}
	for _, item := range items {
		uid, was := item.GetMetadata().GetUid(), newest[item.GetMetadata().GetUid()]
		ready := item.GetState() == runtime.PodSandboxState_SANDBOX_READY
		if ready && (was == nil || item.GetMetadata().GetAttempt() > was.GetMetadata().GetAttempt()) {
			newest[uid] = item
		}
	}
	ids := make(map[string]string, len(newest))
	for uid, item := range newest {
		ids[uid] = item.GetId()
	}
	return ids, nil
}

func (r *Runtime) open(ctx context.Context, item *runtime.PodSandbox) (*os.File, error) {
	s, err := r.describe(ctx, item)
	if err != nil {
		return nil, err
	}
	if s.HostNetwork {
		return nil, fmt.Errorf("pod %s: %w", s.Ref(), ErrHostNetwork)
	}
	var failed []error
	if s.PID > 0 {
		f, err := r.openByProcess(ctx, item, s.PID)
		if err == nil {
			return f, nil
		}
		if errors.Is(err, ErrNotRunning) {
			return nil, err
		}
		failed = append(failed, err)
	}
	if s.NetnsPath != "" {
		f, err := r.openByPath(s.NetnsPath)
		if err == nil {
			return f, nil
		}
		failed = append(failed, err)
	}
	return nil, fmt.Errorf("pod %s: network namespace: %w", s.Ref(), errors.Join(failed...))
}

// openByProcess opens the namespace that the sandbox's process is in. Process ids are used again, so the process
// is held first, then the runtime is asked once more whether this is still the sandbox's, and after opening the
// held process must still live: then it is the one the runtime meant.
func (r *Runtime) openByProcess(ctx context.Context, item *runtime.PodSandbox, pid int) (*os.File, error) {
	held, err := unix.PidfdOpen(pid, 0) // Linux 5.3
	if err != nil {
		return nil, fmt.Errorf("process %d (is this process in the node's PID namespace?): %w", pid, err)
	}
	defer unix.Close(held)
	again, err := r.describe(ctx, item)
	if err != nil {
		return nil, err
	}
	if again.PID != pid {
		return nil, fmt.Errorf("process changed from %d to %d", pid, again.PID)
	}
	f, err := os.Open(filepath.Join(r.proc, strconv.Itoa(pid), "ns", "net"))
	if err != nil {
		return nil, err
	}
	if f, err = checked(f); err != nil {
		return nil, err
	}
	if err := alive(held); err != nil {
		f.Close()
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	return f, nil
}

// alive looks at a pidfd: it becomes readable when its process ends.
func alive(pidfd int) error {
	poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n > 0:
			return errors.New("has ended")
		}
		return nil
	}
}

// openByPath opens the path as the runtime named it: here, if it is mounted here at the same place, or else the
// way the node's first process sees it.
func (r *Runtime) openByPath(path string) (*os.File, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("the runtime's path %q is not absolute", path)
	}
	here, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err == nil {
		if here, err = checked(here); err == nil {
			return here, nil
		}
	}
	node, nodeErr := openIn(filepath.Join(r.proc, "1", "root"), path)
	if nodeErr == nil {
		if node, nodeErr = checked(node); nodeErr == nil {
			return node, nil
		}
	}
	return nil, errors.Join(err, nodeErr)
}

// openIn opens path below root as if root were the root: /var/run is an absolute link on most nodes, and followed
// by name it would lead out of there. Linux 5.6.
func openIn(root, path string) (*os.File, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(dir)
	name := filepath.Join(root, path)
	fd, err := unix.Openat2(dir, path, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// checked returns f when it is a network namespace, and closes it when not: a bind mount that is gone leaves an
// empty file behind.
func checked(f *os.File) (*os.File, error) {
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		f.Close()
		return nil, fmt.Errorf("%s is not a network namespace", f.Name())
	}
	return f, nil
}
