package walk

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// The loops of the groups that restart things: clients in the mesh, and attackers that try plaintext.
const (
	loadNear, loadFar     = walkNamespace + "/load-near", walkNamespace + "/load-far"
	attackNear, attackFar = outside + "/attack-near", outside + "/attack-far"
)

func loops() []string { return []string{loadNear, loadFar, attackNear, attackFar} }

// restarts replaces and kills Culvert's processes while clients go on.
func restarts() group {
	g := group{name: "restarts under load", setup: startLoops, teardown: stopLoops, rows: []row{
		{name: "rollout restart of the agents", where: "both", expected: "0 failed, 0 plaintext", limit: 2 * time.Minute, do: rollingRestart("daemonset/culvert-agent")},
		{name: "rollout restart of the tunnels", where: "both", expected: "0 failed, 0 plaintext", limit: 3 * time.Minute, do: rollingRestart("daemonset/culvert-tunnel")},
	}}
	for _, k := range []struct {
		name, words, expected string
		lossless              bool
	}{
		{"agents", "/usr/local/bin/culvert agent", "0 failed, 0 plaintext", true},
		// New connections wait for the next tunnel, for longer than this client does perhaps.
		{"tunnels", "/usr/local/bin/culvert tunnel", "0 plaintext, mTLS afterwards", false},
		{"CA", "/usr/local/bin/culvert ca", "0 failed, 0 plaintext", true},
		{"agents and tunnels at once", "/usr/local/bin/culvert", "0 plaintext, mTLS afterwards", false},
	} {
		g.rows = append(g.rows, row{name: "kill -9 of the " + k.name, where: "both", expected: k.expected, nodes: true, limit: 3 * time.Minute,
			do: killed(k.words, k.lossless)})
	}
	return g
}

func startLoops(ctx context.Context, s *suite) error {
	if err := s.refresh(ctx); err != nil {
		return err
	}
	if err := s.applyPolicies(ctx, "default-strict"); err != nil {
		return err
	}
	// By the Service: the pod behind it may get another address.
	at, err := s.service(ctx, productpage, 4, 9080)
	if err != nil {
		return err
	}
	from, err := s.near(auditor, productpage, acrossNodes)
	if err != nil {
		return err
	}
	if _, err := s.want(ctx, comeTrue, from, wantRefused, page(at, "")); err != nil {
		return err
	}
	url := page(at, "load")
	const every = "--interval 50ms --timeout 5s"
	if err := s.start(ctx, time.Minute,
		looper(walkNamespace, "load-near", s.node("a"), url, every), looper(walkNamespace, "load-far", s.node("b"), url, every),
		looper(outside, "attack-near", s.node("a"), url, every), looper(outside, "attack-far", s.node("b"), url, every),
	); err != nil {
		return err
	}
	return s.steady(ctx, 20*time.Second)
}

func stopLoops(ctx context.Context, s *suite) error {
	return errors.Join(s.stop(ctx, walkNamespace, "load-near", "load-far"), s.stop(ctx, outside, "attack-near", "attack-far"))
}

// steady waits until clients in the mesh get through.
func (s *suite) steady(ctx context.Context, limit time.Duration) error {
	return s.getThrough(ctx, limit, loadNear, loadFar)
}

// getThrough waits until the last try of each of the loops succeeded.
func (s *suite) getThrough(ctx context.Context, limit time.Duration, refs ...string) error {
	return until(ctx, limit, func(ctx context.Context) error {
		now, err := s.tally(ctx, refs...)
		for ref, c := range now {
			if !c.OK {
				err = errors.Join(err, fmt.Errorf("%s does not get through: %s", ref, c.LastError))
			}
		}
		return err
	})
}

// under does something while the loops go on, waits until everything is as it was, and says what the loops have seen.
func (s *suite) under(ctx context.Context, lossless bool, do func(context.Context) error) (string, error) {
	before, err := s.tally(ctx, loops()...)
	if err != nil {
		return "", err
	}
	if err := do(ctx); err != nil {
		return "", err
	}
	if err := errors.Join(s.ready(ctx, 90*time.Second), s.steady(ctx, 20*time.Second)); err != nil {
		return "", err
	}
	if err := errors.Join(s.follow(ctx, "tunnel"), s.follow(ctx, "agent")); err != nil {
		return "", err
	}
	after, err := s.tally(ctx, loops()...)
	if err != nil {
		return "", err
	}
	return judgeLoops(before, after, lossless)
}

func judgeLoops(before, after tally, lossless bool) (string, error) {
	var errs []error
	var tries, failed, attacks int
	slowest := 0.0
	for _, ref := range loops() {
		c := after.since(before, ref)
		if c.Tries < 5 {
			errs = append(errs, fmt.Errorf("%s made only %d tries", ref, c.Tries))
		}
		if strings.HasPrefix(ref, outside) {
			attacks += c.Tries
			if c.Succeeded > 0 {
				errs = append(errs, fmt.Errorf("plaintext went through: %s: %s", ref, c))
			}
			continue
		}
		tries, failed, slowest = tries+c.Tries, failed+c.Failed, max(slowest, c.SlowestSeconds)
		if lossless && c.Failed > 0 {
			errs = append(errs, fmt.Errorf("%s: %s: %s", ref, c, c.LastError))
		}
	}
	return fmt.Sprintf("%d failed of %d, slowest %.1fs; 0 of %d plaintext", failed, tries, slowest, attacks), errors.Join(errs...)
}

func rollingRestart(object string) func(context.Context, *suite) (string, error) {
	return func(ctx context.Context, s *suite) (string, error) {
		return s.under(ctx, true, func(ctx context.Context) error {
			if _, err := s.kubectl(ctx, "rollout", "restart", object, "--namespace="+systemNamespace); err != nil {
				return err
			}
			return s.rollout(ctx, object, 90*time.Second)
		})
	}
}

// killed ends processes on both nodes and waits until the kubelet has started them again.
func killed(words string, lossless bool) func(context.Context, *suite) (string, error) {
	return func(ctx context.Context, s *suite) (string, error) {
		return s.under(ctx, lossless, func(ctx context.Context) error {
			before, err := s.restartCount(ctx)
			if err != nil {
				return err
			}
			n := 0
			for node := range s.before {
				killed, err := s.kill(ctx, node, words)
				if err != nil {
					return err
				}
				n += killed
			}
			if n == 0 {
				return fmt.Errorf("no process %q was found", words)
			}
			return until(ctx, 90*time.Second, func(ctx context.Context) error {
				now, err := s.restartCount(ctx)
				if err == nil && now < before+n {
					err = fmt.Errorf("%d of %d killed containers were started again", now-before, n)
				}
				return err
			})
		})
	}
}

// restartCount is how often containers of Culvert were started again.
func (s *suite) restartCount(ctx context.Context) (int, error) {
	var list podList
	if err := s.getJSON(ctx, &list, "pods", "--namespace="+systemNamespace); err != nil {
		return 0, err
	}
	n := 0
	for _, p := range list.Items {
		n += p.restarts()
	}
	return n, nil
}

// nodeRestart restarts a node as a whole.
func nodeRestart() group {
	return group{name: "node restart", setup: startLoops, teardown: stopLoops, rows: []row{
		{name: "node of the STRICT pod restarts", where: acrossNodes, expected: "0 plaintext, pods come back enforced", nodes: true, limit: 6 * time.Minute, do: restartNode},
		{name: "plaintext to the pod that came back", where: acrossNodes, expected: "refused", nodes: true, do: afterRestart(auditor, wantRefused)},
		{name: "mTLS to the pod that came back", where: acrossNodes, expected: "ok", nodes: true, do: afterRestart(nginx, wantOK)},
	}}
}

func restartNode(ctx context.Context, s *suite) (string, error) {
	before, err := s.tally(ctx, attackFar)
	if err != nil {
		return "", err
	}
	if err := s.Cluster.RestartNode(ctx, s.node("a")); err != nil {
		return "", err
	}
	if err := s.ready(ctx, 2*time.Minute); err != nil {
		return "", err
	}
	if err := s.waitPods(ctx, 2*time.Minute, "--namespace=default", "--selector="+ours); err != nil {
		return "", err
	}
	if err := errors.Join(s.refresh(ctx), s.follow(ctx, "tunnel"), s.follow(ctx, "agent")); err != nil {
		return "", err
	}
	after, err := s.tally(ctx, attackFar)
	if err != nil {
		return "", err
	}
	c := after.since(before, attackFar)
	if c.Succeeded > 0 || c.Tries < 20 {
		err = fmt.Errorf("plaintext from the other node: %s", c)
	}
	return fmt.Sprintf("%d of %d plaintext %v", c.Succeeded, c.Tries, c.Reasons), err
}

func afterRestart(client, outcome string) func(context.Context, *suite) (string, error) {
	return func(ctx context.Context, s *suite) (string, error) {
		from, err := s.near(client, productpage, acrossNodes)
		if err != nil {
			return "", err
		}
		var urls []string
		for _, version := range s.versions() {
			urls = append(urls, page(s.pods[productpage].at(version, 9080), "after"))
		}
		return s.want(ctx, 30*time.Second, from, outcome, urls...)
	}
}
