package walk

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// removal uninstalls Culvert while a policy refuses plaintext, and looks for what is left. That plaintext goes through
// afterwards is a negative control of everything before as well.
func removal() group {
	return group{name: "uninstall", last: true, setup: prepareRemoval, rows: []row{
		{name: "kubectl delete -k", where: anywhere, expected: "deleted, namespace gone", limit: 3 * time.Minute, do: uninstall},
		{name: "plaintext to a pod that was STRICT", where: acrossNodes, expected: "ok", do: plaintextAgain(auditor, acrossNodes)},
		{name: "plaintext to a pod that was STRICT", where: sameNode, expected: "ok", do: plaintextAgain(auditor, sameNode)},
		{name: "pod that was in the mesh to the Service", where: acrossNodes, expected: "ok", do: plaintextAgain(nginx, acrossNodes)},
		{name: "annotations", where: anywhere, expected: "none left", do: noAnnotations},
		{name: "objects of the cluster", where: anywhere, expected: "none but the kinds of policy", do: noObjects},
		{name: "programs, links and pins", where: anywhere, expected: "none left", nodes: true, do: noPins},
		{name: "sockets", where: anywhere, expected: "none left", nodes: true, do: noSockets},
		{name: "CNI configuration and plugin", where: anywhere, expected: "as before", nodes: true, do: sameCNI},
		{name: "a pod started afterwards", where: anywhere, expected: "ready", do: podAfterwards},
	}}
}

func prepareRemoval(ctx context.Context, s *suite) error {
	if err := s.refresh(ctx); err != nil {
		return err
	}
	if err := s.applyPolicies(ctx, "default-strict"); err != nil {
		return err
	}
	from, err := s.near(auditor, productpage, acrossNodes)
	if err != nil {
		return err
	}
	_, err = s.want(ctx, comeTrue, from, wantRefused, page(s.pods[productpage].at(4, 9080), "before"))
	return err
}

func uninstall(ctx context.Context, s *suite) (string, error) {
	out, err := s.kubectl(ctx, "delete", "--kustomize="+s.Overlay, "--timeout=150s")
	if err != nil {
		return "", err
	}
	_, err = s.kubectl(ctx, "wait", "--for=delete", "namespace/"+systemNamespace, "--timeout=60s")
	if err != nil && strings.Contains(err.Error(), "NotFound") {
		err = nil
	}
	return fmt.Sprintf("%d objects deleted", strings.Count(out, "\n")), err
}

func plaintextAgain(client, where string) func(context.Context, *suite) (string, error) {
	return func(ctx context.Context, s *suite) (string, error) {
		from, err := s.near(client, productpage, where)
		if err != nil {
			return "", err
		}
		var urls []string
		for _, version := range s.versions() {
			urls = append(urls, page(s.pods[productpage].at(version, 9080), "after"))
		}
		at, err := s.service(ctx, productpage, 4, 9080)
		if err != nil {
			return "", err
		}
		return s.want(ctx, comeTrue, from, wantOK, append(urls, page(at, "after"))...)
	}
}

func noAnnotations(ctx context.Context, s *suite) (string, error) {
	var list podList
	if err := s.getJSON(ctx, &list, "pods", "--all-namespaces"); err != nil {
		return "", err
	}
	var left []string
	for _, p := range list.Items {
		if _, ok := p.Metadata.Annotations[redirection]; ok {
			left = append(left, p.Metadata.Namespace+"/"+p.Metadata.Name)
		}
	}
	if len(left) > 0 {
		return fmt.Sprintf("%d left", len(left)), fmt.Errorf("annotation %s is left on %s", redirection, strings.Join(left, ", "))
	}
	return fmt.Sprintf("none on %d pods", len(list.Items)), nil
}

func noObjects(ctx context.Context, s *suite) (string, error) {
	kinds := "clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings,namespaces"
	out, err := s.kubectl(ctx, "get", kinds, "--output=name")
	if err != nil {
		return "", err
	}
	var left []string
	for word := range strings.FieldsSeq(out) {
		_, name, _ := strings.Cut(word, "/")
		if strings.HasPrefix(name, "culvert") && name != walkNamespace && name != manyNamespace {
			left = append(left, word)
		}
	}
	if len(left) > 0 {
		return "", fmt.Errorf("left: %s", strings.Join(left, ", "))
	}
	return "none left", nil
}

// eachNode looks at what is on the nodes, and gives it a little time: the agents go while kubectl waits, but not before.
func (s *suite) eachNode(ctx context.Context, check func(node string, now hostState) error) error {
	return until(ctx, 20*time.Second, func(ctx context.Context) error {
		var errs []error
		for node := range s.before {
			now, err := s.hostState(ctx, node)
			if err == nil {
				err = check(node, now)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}

func noPins(ctx context.Context, s *suite) (string, error) {
	err := s.eachNode(ctx, func(node string, now hostState) error {
		if now.pins != "" {
			return fmt.Errorf("node %s: pinned still: %s", node, oneLine(now.pins))
		}
		return nil
	})
	if err != nil {
		return "pins left", err
	}
	// Whoever holds a descriptor of a program holds the program. The nodes share one kernel and each has its own processes.
	for node := range s.before {
		out, err := s.Cluster.Exec(ctx, node, nil, "sh", "-c", `grep -ls 'prog_id\|link_id\|map_id' /proc/[0-9]*/fdinfo/* 2>/dev/null | cut -d/ -f3 | sort -u |
while read -r p; do tr '\0' ' ' <"/proc/$p/cmdline"; echo; done | grep culvert; true`)
		if err != nil {
			return "", err
		}
		if strings.TrimSpace(out) != "" {
			return "", fmt.Errorf("node %s: processes with programs: %s", node, out)
		}
	}
	return "none", nil
}

func noSockets(ctx context.Context, s *suite) (string, error) {
	err := s.eachNode(ctx, func(node string, now hostState) error {
		if strings.Contains(now.run, "sock") {
			return fmt.Errorf("node %s: /run/culvert has %s", node, oneLine(now.run))
		}
		return nil
	})
	return "none", err
}

func sameCNI(ctx context.Context, s *suite) (string, error) {
	compared := true
	err := s.eachNode(ctx, func(node string, now hostState) error {
		before := s.before[node]
		if now.plugin != "" {
			return fmt.Errorf("node %s: plugin %s is left", node, now.plugin)
		}
		if before.had() {
			compared = false // it was there before this run, so what was before it is not known
			return nil
		}
		if now.cni != before.cni {
			return fmt.Errorf("node %s: CNI configuration was\n%s\nis\n%s", node, before.cni, now.cni)
		}
		return nil
	})
	if !compared {
		return "plugin gone (configuration before is not known)", err
	}
	return "byte for byte", err
}

func podAfterwards(ctx context.Context, s *suite) (string, error) {
	return "ready", s.start(ctx, time.Minute, spec{namespace: outside, name: "afterwards", node: s.node("a"), command: "serve --http 9080"})
}
