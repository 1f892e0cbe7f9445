// Package kubelet finds the cgroup that the node's kubelet runs in. What processes of that cgroup connect to is let
// through by STRICT ports, so a wrong answer opens them: whoever cannot be proved to be the kubelet is not.
//
// A pod's process can call itself kubelet. What gives it away, even with hostNetwork and hostPID: its mount namespace is
// the container's (and its network and process namespaces, unless shared); its cgroup is below the pods'. A user's
// process on the node itself is not root's, or its program is not. Whoever passes all this is root on the node.
package kubelet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ErrNotFound says that no kubelet could be proved to run here. There may be one later.
var ErrNotFound = errors.New("no kubelet was found whose cgroup can be told (name it with --kubelet-cgroup)")

// ErrAmbiguous says that several processes may be the kubelet.
var ErrAmbiguous = errors.New("more than one process may be the kubelet (name its cgroup with --kubelet-cgroup)")

// Find returns the directory of the kubelet's cgroup. proc is where the node's processes are seen, /proc for who runs in
// the host's process namespace; cgroup2 is where the hierarchy of version 2 is mounted as a whole, and empty to look it
// up.
//
// k3s and MicroK8s run the kubelet inside a process that does more, and RKE2 and k0s start it in their own cgroup. Such
// processes forward connections for users of the API server, and STRICT would be open to those: they are named in the
// error, and not accepted.
func Find(proc, cgroup2 string) (string, error) {
	f := finder{proc: proc}
	if err := f.learnHost(); err != nil {
		return "", fmt.Errorf("find the kubelet: %w", err)
	}
	if cgroup2 == "" {
		found, err := f.mountOfCgroup2()
		if err != nil {
			return "", fmt.Errorf("find the kubelet: %w", err)
		}
		cgroup2 = found
	}
	f.cgroups = filepath.Clean(cgroup2)
	dir, err := f.find()
	if err != nil {
		return "", fmt.Errorf("find the kubelet: %w", err)
	}
	return dir, nil
}

type finder struct {
	proc, cgroups string
	host          map[string]string // the namespaces of the node, by kind
}

// namespaces lists the kinds that the kubelet shares with the node's init.
func namespaces() []string { return []string{"pid", "net", "mnt", "user"} }

func (f *finder) learnHost() error {
	f.host = map[string]string{}
	for _, kind := range namespaces() {
		id, err := f.namespace(1, kind)
		if err != nil {
			return fmt.Errorf("the node's namespaces: %w", err)
		}
		f.host[kind] = id
	}
	own, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("own namespace: %w", err)
	}
	// In a process namespace of its own, init would be the agent itself, and nothing would be the kubelet.
	if own != f.host["net"] {
		return errors.New("this process is not in the network of init: it needs hostNetwork and hostPID")
	}
	return nil
}

func (f *finder) find() (string, error) {
	pids, err := f.pids()
	if err != nil {
		return "", err
	}
	var dirs, found, rejected []string
	for _, pid := range pids {
		comm := f.comm(pid)
		if comm != "kubelet" && !embedsKubelet(comm) {
			continue
		}
		dir, err := f.prove(pid, comm)
		if err != nil {
			rejected = append(rejected, fmt.Sprintf("process %d (%s): %v", pid, comm, err))
			continue
		}
		dirs, found = append(dirs, dir), append(found, fmt.Sprintf("process %d in %s", pid, dir))
	}
	switch {
	case len(dirs) > 1:
		return "", fmt.Errorf("%w: %s", ErrAmbiguous, strings.Join(found, ", "))
	case len(dirs) == 1:
		return dirs[0], nil
	case len(rejected) > 0:
		return "", fmt.Errorf("%w; %s", ErrNotFound, strings.Join(rejected, "; "))
	}
	return "", ErrNotFound
}

func embedsKubelet(comm string) bool { return strings.HasPrefix(comm, "k3s") || comm == "kubelite" }

// prove returns the cgroup of a process that is the kubelet, or why it is not.
func (f *finder) prove(pid int, comm string) (string, error) {
	born, err := f.startTime(pid)
	if err != nil {
		return "", err
	}
	for _, kind := range namespaces() {
		if id, err := f.namespace(pid, kind); err != nil || id != f.host[kind] {
			return "", fmt.Errorf("is not in the node's %s namespace", kind)
		}
	}
	if err := f.checkRoot(pid); err != nil {
		return "", err
	}
	if embedsKubelet(comm) {
		return "", errors.New("runs the kubelet inside itself and forwards connections of others as well")
	}
	dir, err := f.cgroupOf(pid)
	if err != nil {
		return "", err
	}
	if err := f.checkMembers(pid, dir); err != nil {
		return "", err
	}
	// All of this was of one process.
	if again, err := f.startTime(pid); err != nil || again != born {
		return "", errors.New("has ended")
	}
	return dir, nil
}

// checkRoot demands that root runs it, and that nobody else can have written it.
func (f *finder) checkRoot(pid int) error {
	uids := strings.Fields(f.status(pid, "Uid:"))
	if len(uids) == 0 {
		return errors.New("has no user")
	}
	for _, uid := range uids {
		if uid != "0" {
			return fmt.Errorf("runs as user %s, not as root", uid)
		}
	}
	program, err := os.Stat(f.path(pid, "exe"))
	if err != nil {
		return err
	}
	if uid, ok := owner(program); !ok || uid != 0 {
		return fmt.Errorf("its program belongs to user %d, not to root", uid)
	}
	if program.Mode().Perm()&0o022 != 0 {
		return errors.New("its program can be written by others than root")
	}
	return nil
}

func (f *finder) path(pid int, name string) string {
	return filepath.Join(f.proc, strconv.Itoa(pid), name)
}

func (f *finder) namespace(pid int, kind string) (string, error) {
	return os.Readlink(f.path(pid, "ns/"+kind))
}

func (f *finder) comm(pid int) string {
	b, _ := os.ReadFile(f.path(pid, "comm")) // it may have ended
	return strings.TrimSuffix(string(b), "\n")
}
