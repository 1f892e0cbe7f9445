package walk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/e2e/demo"
)

// installation makes what every other group needs: Culvert, and the walkthrough's pods.
func installation() group {
	return group{name: "install", always: true, rows: []row{
		{name: "kubectl apply -k", where: anywhere, expected: "applied", vital: true, limit: 2 * time.Minute, do: install},
		{name: "CA, agents and tunnels", where: anywhere, expected: "ready", vital: true, limit: 3 * time.Minute, do: awaitReady},
		{name: "pods of the walkthrough", where: anywhere, expected: "ready", vital: true, limit: 3 * time.Minute, do: startPods},
	}}
}

func install(ctx context.Context, s *suite) (string, error) {
	if s.NodeAccess {
		s.before = map[string]hostState{}
		for _, node := range s.nodes {
			state, err := s.hostState(ctx, node)
			if err != nil {
				return "", err
			}
			s.before[node] = state
		}
		if s.Image != "" {
			if err := s.Cluster.LoadImage(ctx, s.Image); err != nil {
				return "", err
			}
		}
	} else {
		s.before = map[string]hostState{}
	}
	// Mesh-wide policies have their place there; where Istio is not, it is missing.
	made, err := s.kubectl(ctx, "get", "namespace", rootNamespace, "--ignore-not-found", "--output=name")
	if err == nil && made == "" {
		s.madeRoot = true
		_, err = s.kubectl(ctx, "create", "namespace", rootNamespace)
	}
	if err != nil {
		return "", err
	}
	out, err := s.kubectl(ctx, "apply", "--kustomize="+s.Overlay)
	if err != nil {
		return "", err
	}
	if s.Image == "" || strings.Contains(out, "daemonset.apps/culvert-agent created") {
		return fmt.Sprintf("%d objects", strings.Count(out, "\n")), nil
	}
	// It was there already, perhaps with an older image of the same name.
	_, err = s.kubectl(ctx, "rollout", "restart", "--namespace="+systemNamespace, "deployment/culvert-ca", "daemonset/culvert-agent",
		"daemonset/culvert-tunnel")
	return "updated", err
}

func awaitReady(ctx context.Context, s *suite) (string, error) {
	if err := s.ready(ctx, 3*time.Minute); err != nil {
		return "", err
	}
	return "ready", errors.Join(s.follow(ctx, "tunnel"), s.follow(ctx, "agent"))
}

func startPods(ctx context.Context, s *suite) (string, error) {
	var docs []string
	for name, enrolled := range demo.EnrolledNamespaces() {
		if name == "default" || name == rootNamespace {
			continue
		}
		docs = append(docs, namespaceManifest(name, enrolled))
	}
	slices.Sort(docs)
	docs = append(docs, namespaceManifest(walkNamespace, true))
	for _, p := range demo.Pods() {
		docs = append(docs, serviceManifest(p.Namespace, p.Name, p.Name, "culvert.test/copy: first", 9080, 9090))
	}
	if err := s.apply(ctx, strings.Join(docs, "---\n")); err != nil {
		return "", err
	}
	if _, err := s.kubectl(ctx, "label", "namespace", "default", "istio.io/dataplane-mode=ambient", "--overwrite"); err != nil {
		return "", err
	}
	// What a run that was ended left would select these pods as well.
	if err := s.applyPolicies(ctx); err != nil {
		return "", err
	}
	// The service account of a new namespace comes a moment later.
	if err := until(ctx, 30*time.Second, func(ctx context.Context) error {
		for _, name := range []string{outside, "test", "web", walkNamespace} {
			if _, err := s.kubectl(ctx, "get", "serviceaccount", "default", "--namespace="+name); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return "", err
	}
	if err := s.start(ctx, 2*time.Minute, s.specimens()...); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d pods", len(s.pods)), nil
}

func namespaceManifest(name string, enrolled bool) string {
	text := "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: " + name + "\n"
	if enrolled {
		text += "  labels:\n    istio.io/dataplane-mode: ambient\n"
	}
	return text
}

// serviceManifest is a Service of pods by their label app, and by one more label.
func serviceManifest(namespace, name, app, selector string, ports ...int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: v1\nkind: Service\nmetadata:\n  name: %s\n  namespace: %s\n  labels:\n    culvert.test/walk: \"yes\"\n", name, namespace)
	fmt.Fprintf(&b, "spec:\n  ipFamilyPolicy: PreferDualStack\n  selector:\n    app: %s\n", app)
	if selector != "" {
		fmt.Fprintf(&b, "    %s\n", selector)
	}
	b.WriteString("  ports:\n")
	for _, port := range ports {
		fmt.Fprintf(&b, "  - {name: p%d, port: %d}\n", port, port)
	}
	return b.String()
}
