package walk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// answers are the questions that people put to all nodes at once, through the API server.
func answers() group {
	return group{name: "answers", setup: func(ctx context.Context, s *suite) error {
		if err := errors.Join(s.applyPolicies(ctx), s.refresh(ctx)); err != nil {
			return err
		}
		return s.comeInPlaintext(ctx)
	}, rows: []row{
		{name: "culvert status", where: "both", expected: "every node is well", do: statusOfNodes},
		{name: "culvert describe", where: "both", expected: "a pod of each node, and a Service", do: describes},
		{name: "culvert can --try", where: "both", expected: "what happens is what was foretold", do: foretells},
		{name: "culvert flows", where: "both", expected: "connections of every kind, of every node", do: flowsOfNodes},
		{name: "culvert readiness default", where: "both", expected: "not ready, and who came in plaintext", do: readinessOfDefault},
		{name: "culvert readiness of a workload with a pod on each node", where: "both", expected: "READY, one node alone UNKNOWN, after plaintext NOT READY", do: readinessOfSpread},
		{name: "culvert bugreport", where: "both", expected: "a file", do: bugreportOfNodes},
	}}
}

// comeInPlaintext has a client outside the mesh let in, and refused.
func (s *suite) comeInPlaintext(ctx context.Context) error {
	from, err := s.near(legacyApp, productpage, acrossNodes)
	if err != nil {
		return err
	}
	url := page(s.pods[productpage].at(4, 9080), "answers")
	for _, step := range []struct {
		outcome  string
		policies []string
	}{{wantOK, nil}, {wantRefused, []string{"default-strict"}}, {wantOK, nil}} {
		if err := s.applyPolicies(ctx, step.policies...); err != nil {
			return err
		}
		if _, err := s.want(ctx, 20*time.Second, from, step.outcome, url); err != nil {
			return err
		}
	}
	return nil
}

func statusOfNodes(ctx context.Context, s *suite) (string, error) {
	out, err := s.culvert(ctx, "status")
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	for _, node := range s.nodes {
		if !strings.Contains(out, node) {
			return "", fmt.Errorf("no line about %s:\n%s", node, out)
		}
	}
	return fmt.Sprintf("%d nodes", len(s.nodes)), nil
}

func describes(ctx context.Context, s *suite) (string, error) {
	for _, q := range [][]string{
		{"pod", nginx, "spiffe://cluster.local/ns/test/sa/nginx"}, {"pod", productpage, "spiffe://cluster.local/ns/default/sa/productpage"},
		{"pod", auditor, "not enrolled"}, {"service", productpage, "in the mesh"},
	} {
		out, err := s.culvert(ctx, "describe", q[0], q[1])
		if err != nil || !strings.Contains(out, q[2]) {
			return "", fmt.Errorf("describe %s %s: want %q: %w\n%s", q[0], q[1], q[2], err, out)
		}
	}
	if out, err := s.culvert(ctx, "describe", "pod", "default/no-such-pod"); err == nil {
		return "", fmt.Errorf("a pod that does not exist is described:\n%s", out)
	}
	return "described", nil
}

func foretells(ctx context.Context, s *suite) (string, error) {
	n := 0
	for _, where := range []string{sameNode, acrossNodes} {
		from, err := s.near(nginx, productpage, where)
		if err != nil {
			return "", err
		}
		out, err := s.culvert(ctx, "can", from.ref(), productpage+":9080", "--try")
		if err != nil || !strings.Contains(out, "as foretold") || strings.Contains(out, "not as foretold") {
			return "", fmt.Errorf("%w\n%s", err, out)
		}
		n++
	}
	return fmt.Sprintf("%d tried", n), nil
}

func flowsOfNodes(ctx context.Context, s *suite) (string, error) {
	out, err := s.culvert(ctx, "flows", "-o", "json")
	if err != nil {
		return "", err
	}
	nodes, kinds, n := map[string]int{}, map[string]int{}, 0
	for line := range strings.Lines(out) {
		var flow struct{ Node, Carried string }
		if err := json.Unmarshal([]byte(line), &flow); err != nil {
			return "", fmt.Errorf("%q: %w", line, err)
		}
		nodes[flow.Node]++
		kinds[flow.Carried]++
		n++
	}
	got := fmt.Sprintf("%d flows of %d nodes: %v", n, len(nodes), kinds)
	if len(nodes) != len(s.nodes) || kinds["mtls"] == 0 || kinds["same-node"] == 0 || kinds["refused"] == 0 {
		return got, errors.New("something is missing")
	}
	return got, nil
}

func readinessOfDefault(ctx context.Context, s *suite) (string, error) {
	out, err := s.culvert(ctx, "readiness", "default")
	switch {
	case err == nil:
		return out, errors.New("want exit code 1")
	case !strings.Contains(out, "NOT READY") || !strings.Contains(out, "legacy-app"):
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return fmt.Sprintf("%d lines", strings.Count(out, "\n")), nil
}

func bugreportOfNodes(ctx context.Context, s *suite) (string, error) {
	dir, err := os.MkdirTemp("", "culvert-e2e-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "report.tar.gz")
	if _, err := s.culvert(ctx, "bugreport", "--file", file); err != nil {
		return "", err
	}
	info, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d KB", info.Size()>>10), nil
}
