package walk

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// collect writes the logs of Culvert, the events and the state of pods and nodes to a folder, and the last lines to the
// progress.
func (s *suite) collect(ctx context.Context, dir string) {
	write := func(name, text string, err error) {
		if err != nil {
			text += "\n" + err.Error() + "\n"
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			s.progress("diagnosis: %v", err)
		}
	}
	get := func(name string, args ...string) string {
		out, err := s.kubectl(ctx, args...)
		write(name, out, err)
		return out
	}
	fmt.Fprint(s.Progress, get("pods.txt", "get", "pods", "--all-namespaces", "--output=wide"))
	get("events.txt", "get", "events", "--all-namespaces", "--sort-by=.lastTimestamp")
	get("policies.yaml", "get", "peerauthentications,destinationrules", "--all-namespaces", "--output=yaml")
	get("describe.txt", "describe", "pods", "--namespace="+systemNamespace)
	for _, component := range []string{"agent", "tunnel", "ca"} {
		var list podList
		if err := s.getJSON(ctx, &list, "pods", "--namespace="+systemNamespace, "--selector=app.kubernetes.io/component="+component); err != nil {
			continue // pods.txt says as much
		}
		for _, p := range list.Items {
			name := p.Metadata.Name
			out := get(name+".log", "logs", "--namespace="+systemNamespace, "--all-containers", name)
			if p.restarts() > 0 {
				get(name+".previous.log", "logs", "--namespace="+systemNamespace, "--previous", name)
			}
			fmt.Fprintf(s.Progress, "--- %s on %s, the last lines of its log:\n%s\n", name, p.Spec.NodeName, strings.ReplaceAll(tail(out, 5), " | ", "\n"))
		}
	}
	if !s.NodeAccess {
		return
	}
	for _, node := range s.nodes {
		out, err := s.Cluster.Exec(ctx, node, nil, "sh", "-c",
			"head -100 /etc/cni/net.d/*; find /sys/fs/bpf /run/culvert; ip -brief address; journalctl --no-pager --lines=200 --unit=kubelet --unit=containerd")
		write(node+".txt", out, err)
	}
}
