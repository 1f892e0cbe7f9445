package walk

import (
	"context"
	"fmt"
	"strings"
)

// hostState is what Culvert may leave on a node.
type hostState struct {
	cni    string // names and digests of the CNI configuration
	plugin string // of Culvert among the CNI plugins
	pins   string // below /sys/fs/bpf
	run    string // below /run/culvert
}

// had reports whether Culvert was there.
func (h hostState) had() bool { return h.plugin != "" || h.pins != "" }

func (s *suite) hostState(ctx context.Context, node string) (hostState, error) {
	const script = `cd /etc/cni/net.d 2>/dev/null && find . -type f | sort | xargs sha256sum; echo ---
ls /opt/cni/bin 2>/dev/null | grep -i culvert; echo ---
find /sys/fs/bpf -mindepth 1 -path '*culvert*' 2>/dev/null; echo ---
ls -A /run/culvert 2>/dev/null; true`
	out, err := s.Cluster.Exec(ctx, node, nil, "sh", "-c", script)
	if err != nil {
		return hostState{}, err
	}
	parts := strings.Split(out, "---\n")
	if len(parts) != 4 {
		return hostState{}, fmt.Errorf("state of node %s: not understood: %q", node, out)
	}
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	return hostState{cni: parts[0], plugin: parts[1], pins: parts[2], run: parts[3]}, nil
}

// kill ends every process on a node whose command line begins with the words, without warning, and returns how many.
func (s *suite) kill(ctx context.Context, node, words string) (int, error) {
	const script = `for p in /proc/[0-9]*; do
	line=$(tr '\0' ' ' <$p/cmdline 2>/dev/null)
	case $line in "$1 "*) kill -9 ${p#/proc/} && echo killed ;; esac
done; true`
	out, err := s.Cluster.Exec(ctx, node, nil, "sh", "-c", script, "sh", words)
	if err != nil {
		return 0, err
	}
	return strings.Count(out, "killed"), nil
}

// pinnedPods is how many pods are enforced on a node, by what is pinned.
func (s *suite) pinnedPods(ctx context.Context, node string) (int, error) {
	out, err := s.Cluster.Exec(ctx, node, nil, "sh", "-c", `ls -d /sys/fs/bpf/culvert/*/pods/* 2>/dev/null | wc -l`)
	if err != nil {
		return 0, err
	}
	var n int
	if _, err := fmt.Sscan(out, &n); err != nil {
		return 0, fmt.Errorf("pins of node %s: %q: %w", node, out, err)
	}
	return n, nil
}
