package walk

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// badInput is what a cluster may hold by accident.
func badInput() group {
	return group{name: "bad input", setup: func(ctx context.Context, s *suite) error {
		if err := s.applyPolicies(ctx, "default-strict"); err != nil {
			return err
		}
		return s.meshHolds(ctx)
	}, teardown: func(ctx context.Context, s *suite) error {
		return errors.Join(s.applyPolicies(ctx), s.stop(ctx, outside, "ghost"))
	}, rows: []row{
		{name: "unknown fields and an unknown mode", where: anywhere, expected: "refused by the API server", do: unknownMode},
		{name: "ended pod with the address of another", where: acrossNodes, expected: "mTLS goes on", do: duplicateAddress},
		{name: "label flaps ten times a second", where: acrossNodes, expected: "0 plaintext, mTLS afterwards", limit: 2 * time.Minute, do: flapping},
		{name: "RBAC without destinationrules", where: anywhere, expected: "named in the agent's log, STRICT holds", limit: 3 * time.Minute, do: missingVerb},
	}}
}

// meshHolds looks whether mTLS goes through to the STRICT pod, and plaintext does not.
func (s *suite) meshHolds(ctx context.Context) error {
	client, err := s.near(nginx, productpage, acrossNodes)
	if err != nil {
		return err
	}
	attacker, err := s.near(auditor, productpage, acrossNodes)
	if err != nil {
		return err
	}
	url := page(s.pods[productpage].at(4, 9080), "holds")
	_, err = s.want(ctx, comeTrue, attacker, wantRefused, url)
	if err == nil {
		_, err = s.want(ctx, comeTrue, client, wantOK, url)
	}
	return err
}

func unknownMode(ctx context.Context, s *suite) (string, error) {
	const manifest = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: unknown\n  namespace: default\nspec:\n  mtls:\n    mode: LAX\n"
	err := s.apply(ctx, manifest)
	if err == nil {
		return "accepted", errors.Join(errors.New("mode LAX was accepted"), s.remove(ctx, manifest))
	}
	if !strings.Contains(err.Error(), "LAX") {
		return "", fmt.Errorf("the refusal does not name the mode: %w", err)
	}
	return "refused", nil
}

// duplicateAddress gives a pod that has ended the address of one that runs, as happens when an address is given out again
// before the old pod's object is removed.
func duplicateAddress(ctx context.Context, s *suite) (string, error) {
	ghost := spec{namespace: outside, name: "ghost", node: s.node("b"), command: "first --url tcp://127.0.0.1:1"}
	manifest := strings.Replace(ghost.manifest(s.Tools), "spec:\n", "spec:\n  restartPolicy: Never\n", 1)
	if err := s.apply(ctx, manifest); err != nil {
		return "", err
	}
	if _, err := s.kubectl(ctx, "wait", "pod", "ghost", "--namespace="+outside, "--for=jsonpath={.status.phase}=Failed", "--timeout=40s"); err != nil {
		return "", err
	}
	address := s.pods[productpage].ip[4].String()
	patch := fmt.Sprintf(`{"status":{"phase":"Succeeded","podIP":%q,"podIPs":[{"ip":%q}]}}`, address, address)
	if _, err := s.kubectl(ctx, "patch", "pod", "ghost", "--namespace="+outside, "--subresource=status", "--type=merge", "--patch="+patch); err != nil {
		return "", err
	}
	if err := s.meshHolds(ctx); err != nil {
		return "", err
	}
	return "mTLS goes on", nil
}

// flapping changes a label of the STRICT pod as fast as can be, by which a policy selects it, while plaintext is tried.
func flapping(ctx context.Context, s *suite) (string, error) {
	at := page(s.pods[productpage].at(4, 9080), "flap")
	ref := outside + "/attack-flap"
	if err := s.start(ctx, time.Minute, looper(outside, "attack-flap", s.node("b"), at, "--interval 20ms")); err != nil {
		return "", err
	}
	defer func() { _ = s.stop(context.WithoutCancel(ctx), outside, "attack-flap") }() // clear removes the namespace
	const selects = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: flapping\n  namespace: default\n" +
		"spec:\n  selector:\n    matchLabels:\n      culvert.test/flap: \"1\"\n  portLevelMtls:\n    9999: {mode: PERMISSIVE}\n"
	if err := s.apply(ctx, selects); err != nil {
		return "", err
	}
	changes, begin := 0, time.Now()
	for time.Since(begin) < 5*time.Second {
		_, err := s.kubectl(ctx, "label", "pod", "productpage", "--namespace=default", "--overwrite", fmt.Sprintf("culvert.test/flap=%d", changes%2))
		if err != nil {
			return "", err
		}
		changes++
		time.Sleep(max(0, time.Duration(changes)*100*time.Millisecond-time.Since(begin)))
	}
	rate := float64(changes) / time.Since(begin).Seconds()
	err := errors.Join(s.meshHolds(ctx), s.remove(ctx, selects))
	_, labelErr := s.kubectl(ctx, "label", "pod", "productpage", "--namespace=default", "culvert.test/flap-")
	c, countErr := s.counted(ctx, ref)
	if c.Succeeded > 0 {
		err = errors.Join(err, fmt.Errorf("plaintext went through: %s", c))
	}
	return fmt.Sprintf("%.0f changes a second; %d of %d plaintext", rate, c.Succeeded, c.Tries), errors.Join(err, labelErr, countErr)
}

// missingVerb takes one permission from the agents and starts one of them anew.
func missingVerb(ctx context.Context, s *suite) (string, error) {
	before, err := s.systemPods(ctx, "agent")
	if err != nil {
		return "", err
	}
	var role struct {
		Rules []map[string]any
	}
	if err := s.getJSON(ctx, &role, "clusterrole", "culvert-agent"); err != nil {
		return "", err
	}
	index := -1
	for i, rule := range role.Rules {
		if strings.Contains(fmt.Sprint(rule["resources"]), "[destinationrules]") {
			index = i
		}
	}
	if index < 0 {
		return "", errors.New("ClusterRole culvert-agent has no rule for destinationrules alone")
	}
	patch := fmt.Sprintf(`[{"op":"remove","path":"/rules/%d"}]`, index)
	if _, err := s.kubectl(ctx, "patch", "clusterrole", "culvert-agent", "--type=json", "--patch="+patch); err != nil {
		return "", err
	}
	restore := func() error {
		_, err := s.kubectl(context.WithoutCancel(ctx), "apply", "--kustomize="+s.Overlay)
		return errors.Join(err, s.ready(context.WithoutCancel(ctx), 90*time.Second), s.follow(context.WithoutCancel(ctx), "agent"))
	}
	said, err := s.withoutPermission(ctx, before[s.node("a")])
	return said, errors.Join(err, restore(), s.meshHolds(ctx))
}

func (s *suite) withoutPermission(ctx context.Context, old string) (string, error) {
	if _, err := s.kubectl(ctx, "delete", "pod", old, "--namespace="+systemNamespace, "--wait=true", "--timeout=60s"); err != nil {
		return "", err
	}
	var said string
	err := until(ctx, 40*time.Second, func(ctx context.Context) error {
		pods, err := s.systemPods(ctx, "agent")
		if err != nil {
			return err
		}
		out, err := s.kubectl(ctx, "logs", "--namespace="+systemNamespace, pods[s.node("a")])
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if strings.Contains(line, "destinationrules") && (strings.Contains(line, "forbidden") || strings.Contains(line, "list")) {
				entry := parseLine([]byte(line))
				said = strings.Join([]string{entry.get("level"), entry.get("msg"), entry.get("resource"), entry.get("verb")}, " ")
				return nil
			}
		}
		return fmt.Errorf("the agent's log does not name the permission: %s", tail(out, 5))
	})
	if err != nil {
		return "", err
	}
	attacker, err := s.near(auditor, productpage, acrossNodes)
	if err != nil {
		return "", err
	}
	_, err = s.want(ctx, comeTrue, attacker, wantRefused, page(s.pods[productpage].at(4, 9080), ""))
	return said, err
}

// manyPolicies has a thousand policies in one namespace.
func manyPolicies() group {
	const count = 1000
	return group{name: "a thousand policies", setup: func(ctx context.Context, s *suite) error {
		var docs strings.Builder
		docs.WriteString(namespaceManifest(manyNamespace, true))
		for i := range count {
			fmt.Fprintf(&docs, "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p%04d, namespace: %s}\n"+
				"spec: {selector: {matchLabels: {app: many}}, mtls: {mode: %s}}\n", i, manyNamespace, []string{"STRICT", "PERMISSIVE"}[min(i, 1)])
		}
		if err := s.apply(ctx, namespaceManifest(manyNamespace, true)); err != nil {
			return err
		}
		// Not apply: that would ask for each one first. What a run before left is there already.
		_, err := s.Cluster.Kubectl(ctx, strings.NewReader(docs.String()), "create", "--filename=-", "--validate=ignore")
		if err != nil && strings.Contains(err.Error(), "AlreadyExists") {
			err = nil
		}
		if err != nil {
			return err
		}
		return until(ctx, 30*time.Second, func(ctx context.Context) error {
			return s.start(ctx, time.Minute, spec{namespace: manyNamespace, name: "many", node: s.node("a"), labels: map[string]string{"app": "many"},
				command: "serve --http 9080"})
		})
	}, teardown: func(ctx context.Context, s *suite) error {
		_, err := s.kubectl(ctx, "delete", "namespace", manyNamespace, "--wait=false")
		return err
	}, rows: []row{
		{name: "the oldest of them holds", where: acrossNodes, expected: "refused", do: func(ctx context.Context, s *suite) (string, error) {
			from, err := s.near(auditor, manyNamespace+"/many", acrossNodes)
			if err != nil {
				return "", err
			}
			return s.want(ctx, comeTrue, from, wantRefused, page(s.pods[manyNamespace+"/many"].at(4, 9080), ""))
		}},
		{name: "a policy elsewhere is enforced", where: acrossNodes, expected: "as soon as otherwise", do: func(ctx context.Context, s *suite) (string, error) {
			if err := s.applyPolicies(ctx, "default-strict"); err != nil {
				return "", err
			}
			begin := time.Now()
			err := s.meshHolds(ctx)
			took := time.Since(begin)
			return "within " + took.Round(100*time.Millisecond).String(), errors.Join(err, s.applyPolicies(ctx))
		}},
	}}
}
