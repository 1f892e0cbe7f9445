package walk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"
)

const (
	freshPods  = 60 // with a service account each, for how soon an SVID is there
	freshBatch = 6  // at once: a kubelet starts no more, and this machine's two cores are not to be what is measured
	// manyConnections are made while leaf, intermediate and root are replaced.
	manyConnections = 10_000
	// Lives while the CA is rotated: everything happens within two minutes.
	rotatedLife, rotatedOverlap = 20 * time.Second, 20 * time.Second
)

// certificates are the rows about who has which identity, from when on, and until when.
func certificates() group {
	return group{name: "certificates", setup: func(ctx context.Context, s *suite) error {
		return errors.Join(s.refresh(ctx), s.apply(ctx, strictWalk))
	}, rows: []row{
		{name: "culvert certs of each node, through the API server", where: "both", expected: "an SVID for each pod's identity", do: certsOfNodes},
		{name: "culvert certs verify", where: acrossNodes, expected: "both sides accept each other", do: verifies(productpage, "")},
		{name: "culvert certs verify, to a pod outside the mesh", where: acrossNodes, expected: "fails, and says why", do: verifies(auditor, "nobody listens")},
		{name: "rollout restart of the agents", where: "both", expected: "no certificate is asked for", limit: 3 * time.Minute, do: restartWithoutBurst},
		{name: fmt.Sprintf("%d pods with a service account each", freshPods), where: "both", expected: "SVID within 300 ms for 99 %", limit: 4 * time.Minute, do: firstSVIDs},
		{name: "metrics of the CA, for its dashboard", where: "both", expected: "requests, reviews and bundles counted", do: metricsOfTheCA},
	}}
}

// rotationOfTheCA replaces everything there is to replace while clients connect anew again and again.
func rotationOfTheCA() group {
	lives := func(ctx context.Context, s *suite, life, overlap, intermediate time.Duration) error {
		if _, err := s.kubectl(ctx, "set", "env", "deployment/culvert-ca", "--namespace="+systemNamespace,
			"SVID_TTL="+life.String(), "ROOT_OVERLAP="+overlap.String(), "INTERMEDIATE_TTL="+intermediate.String()); err != nil {
			return err
		}
		return s.rollout(ctx, "deployment/culvert-ca", time.Minute)
	}
	return group{name: "CA rotation under load", setup: func(ctx context.Context, s *suite) error {
		if err := errors.Join(s.apply(ctx, strictWalk), lives(ctx, s, rotatedLife, rotatedOverlap, time.Hour)); err != nil {
			return err
		}
		// An old root stays for as long as the longest life that there was, which is a day. Here it goes much sooner, under
		// certificates that are still good: agents have to replace those at once.
		if _, err := s.kubectl(ctx, "annotate", "--overwrite", "--namespace="+systemNamespace, "secret", "culvert-ca-root",
			"culvert.dev/ca-longest-svid-ttl="+rotatedLife.String()); err != nil {
			return err
		}
		// New identities, which get such certificates from the start.
		server := spec{namespace: walkNamespace, name: "turned", node: s.node("a"), account: "turned", command: "serve --http 9080"}
		if err := s.start(ctx, time.Minute, server); err != nil {
			return err
		}
		url := page(s.pods[walkNamespace+"/turned"].at(4, 9080), "turn")
		near, far := looper(walkNamespace, "turn-near", s.node("a"), url, "--interval 8ms --timeout 5s"), looper(walkNamespace, "turn-far", s.node("b"), url, "--interval 8ms --timeout 5s")
		near.account, far.account = "turning", "turning"
		return s.start(ctx, time.Minute, near, far)
	}, teardown: func(ctx context.Context, s *suite) error {
		return errors.Join(lives(ctx, s, 24*time.Hour, time.Hour, 30*24*time.Hour), s.stop(ctx, walkNamespace, "turned", "turn-near", "turn-far"))
	}, rows: []row{
		{name: "leaf, intermediate and root", where: "both", expected: fmt.Sprintf("0 failed of %d connections", manyConnections), limit: 9 * time.Minute, do: turnEverything},
	}}
}

// culvert runs the command line on this machine, against the cluster's API server.
func (s *suite) culvert(ctx context.Context, args ...string) (string, error) {
	argv, err := s.Cluster.KubectlCommand(ctx)
	if err != nil {
		return "", err
	}
	// ... kubectl --kubeconfig FILE
	at := slices.Index(argv, "--kubeconfig")
	if at < 1 {
		return "", fmt.Errorf("no --kubeconfig in %q", argv)
	}
	argv = slices.Concat(argv[:at-1], []string{s.Culvert}, args, argv[at:])
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("culvert %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), err
}

// nodeCertificates is what `culvert certs -o json` prints, as far as it is looked at.
type nodeCertificates struct {
	Node, Source string
	Bundles      []struct{ Roots []struct{ SHA256 string } }
	SVIDs        []struct {
		Identity  string
		Workloads []string
		Chain     []struct{ NotAfter time.Time }
		LastError string
	}
}

func (s *suite) certificatesOf(ctx context.Context, node string) (c nodeCertificates, err error) {
	out, err := s.culvert(ctx, "certs", "--node", node, "-o", "json")
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal([]byte(out), &c); err != nil {
		return c, fmt.Errorf("culvert certs --node %s: %w", node, err)
	}
	return c, nil
}

// enrolled returns the node of each pod that is announced as enrolled, and is there to stay.
func (s *suite) enrolled(ctx context.Context) (map[string]string, error) {
	var list podList
	if err := s.getJSON(ctx, &list, "pods", "--all-namespaces"); err != nil {
		return nil, err
	}
	nodes := map[string]string{}
	for _, o := range list.Items {
		if o.Metadata.Annotations["ambient.istio.io/redirection"] == "enabled" && o.Metadata.DeletionTimestamp == "" && o.Status.Phase == "Running" {
			nodes[o.Metadata.Namespace+"/"+o.Metadata.Name] = o.Spec.NodeName
		}
	}
	return nodes, nil
}

func certsOfNodes(ctx context.Context, s *suite) (string, error) {
	identities := 0
	enrolled, err := s.enrolled(ctx)
	if err != nil {
		return "", err
	}
	for _, node := range s.nodes {
		c, err := s.certificatesOf(ctx, node)
		if err != nil {
			return "", err
		}
		if c.Node != node || !strings.Contains(c.Source, "culvert-ca."+systemNamespace) || len(c.Bundles) == 0 || len(c.Bundles[0].Roots) != 1 {
			return "", fmt.Errorf("node %q, source %q, %d bundles", c.Node, c.Source, len(c.Bundles))
		}
		known := map[string]bool{}
		for _, svid := range c.SVIDs {
			if len(svid.Workloads) == 0 {
				continue // in its grace
			}
			if len(svid.Chain) != 2 || svid.LastError != "" {
				return "", fmt.Errorf("%s: chain of %d certificates, error %q", svid.Identity, len(svid.Chain), svid.LastError)
			}
			for _, w := range svid.Workloads {
				known[w] = true
			}
			identities++
		}
		for ref, on := range enrolled {
			if on == node && !known[ref] {
				return "", fmt.Errorf("no SVID of %s on %s", ref, node)
			}
		}
	}
	if identities == 0 {
		return "", errors.New("no identity is in use")
	}
	return fmt.Sprintf("%d identities on %d nodes, leaf and intermediate each", identities, len(s.nodes)), nil
}

// verifies has a client of the other node verify a pod; want is in the explanation of a failure, empty for none.
func verifies(to, want string) func(context.Context, *suite) (string, error) {
	return func(ctx context.Context, s *suite) (string, error) {
		from, err := s.near(nginx, to, acrossNodes)
		if err != nil {
			return "", err
		}
		out, err := s.culvert(ctx, "certs", "verify", from.ref(), to)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		last := lines[len(lines)-1]
		switch {
		case want == "" && err != nil:
			return "", fmt.Errorf("%w\n%s", err, out)
		case want != "" && (err == nil || !strings.Contains(out, want)):
			return last, fmt.Errorf("want a failure with %q, got %v and\n%s", want, err, out)
		}
		return last, nil
	}
}

// issued counts the certificates that the CA signed since.
func (s *suite) issued(ctx context.Context, since time.Time) (int, error) {
	out, err := s.kubectl(ctx, "logs", "--namespace="+systemNamespace, "--selector=app.kubernetes.io/component=ca", "--container=ca",
		"--tail=-1", "--since-time="+since.UTC().Format(time.RFC3339Nano))
	return strings.Count(out, "certificate issued"), err
}

// restartWithoutBurst: the tunnels hold what new agents would otherwise have to ask for.
func restartWithoutBurst(ctx context.Context, s *suite) (string, error) {
	held := 0
	for _, node := range s.nodes {
		c, err := s.certificatesOf(ctx, node)
		if err != nil {
			return "", err
		}
		held += len(c.SVIDs)
	}
	begin := time.Now()
	if _, err := s.kubectl(ctx, "rollout", "restart", "daemonset/culvert-agent", "--namespace="+systemNamespace); err != nil {
		return "", err
	}
	if err := s.rollout(ctx, "daemonset/culvert-agent", 90*time.Second); err != nil {
		return "", err
	}
	// Whatever is to be asked for is asked for within seconds.
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case <-time.After(8 * time.Second):
	}
	n, err := s.issued(ctx, begin)
	if err != nil {
		return "", err
	}
	if n > 0 {
		err = fmt.Errorf("%d certificates were asked for anew", n)
	}
	return fmt.Sprintf("%d asked for, %d identities", n, held), errors.Join(err, s.refresh(ctx), s.follow(ctx, "agent"))
}

// firstSVIDs measures, from the agents' logs, how long a new identity waits for its first SVID.
func firstSVIDs(ctx context.Context, s *suite) (string, error) {
	var specs []spec
	var refs []string
	for i := range freshPods {
		name := fmt.Sprintf("fresh-%02d", i)
		specs = append(specs, spec{namespace: walkNamespace, name: name, node: s.nodes[i%2], account: name, command: "serve --http 9080"})
		refs = append(refs, name)
	}
	begin := time.Now()
	for batch := range slices.Chunk(specs, freshBatch) {
		if err := s.start(ctx, time.Minute, batch...); err != nil {
			return "", err
		}
	}
	var waits []time.Duration
	err := until(ctx, 20*time.Second, func(context.Context) error {
		enrolled, has := map[string]time.Time{}, map[string]time.Time{}
		for _, l := range s.logs.lines("agent", begin) {
			id := l.get("identity")
			into := map[string]map[string]time.Time{"pod enrolled": enrolled, "SVID issued": has}[l.get("msg")]
			if _, again := into[id]; into != nil && !again {
				into[id] = l.when()
			}
		}
		waits = waits[:0]
		for _, name := range refs {
			id := "spiffe://cluster.local/ns/" + walkNamespace + "/sa/" + name
			from, to := enrolled[id], has[id]
			if from.IsZero() || to.IsZero() {
				return fmt.Errorf("no SVID of %s in the agents' logs", id)
			}
			waits = append(waits, max(0, to.Sub(from)))
		}
		return nil
	})
	err = errors.Join(err, s.stop(ctx, walkNamespace, refs...))
	if err != nil {
		return "", err
	}
	slices.Sort(waits)
	median, p99 := waits[len(waits)/2], waits[(len(waits)*99+99)/100-1]
	return fmt.Sprintf("p50 %d ms, p99 %d ms of %d", median.Milliseconds(), p99.Milliseconds(), len(waits)), nil
}

// caStatus is what `culvert ca status -o json` prints, as far as it is looked at.
type caStatus struct {
	Phase string
	Roots []struct{ SHA256 string }
}

func (s *suite) caStatus(ctx context.Context) (c caStatus, err error) {
	out, err := s.culvert(ctx, "ca", "status", "-o", "json", "--culvert-namespace", systemNamespace)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal([]byte(out), &c); err != nil || len(c.Roots) == 0 {
		return c, fmt.Errorf("culvert ca status: %d roots: %w", len(c.Roots), err)
	}
	return c, nil
}

// onlyRoot looks that no agent trusts the old root, or has a certificate of before its end.
func (s *suite) onlyRoot(ctx context.Context, old string) error {
	// Agents trust what is mounted too, which kubelets bring up to date within a minute or two.
	return until(ctx, 150*time.Second, func(ctx context.Context) error {
		for _, node := range s.nodes {
			c, err := s.certificatesOf(ctx, node)
			if err != nil {
				return err
			}
			if roots := c.Bundles[0].Roots; len(roots) != 1 || roots[0].SHA256 == old {
				return fmt.Errorf("%d roots on %s, one of them the old one perhaps", len(roots), node)
			}
			for _, svid := range c.SVIDs {
				if svid.LastError != "" || len(svid.Chain) != 2 || time.Until(svid.Chain[0].NotAfter) > rotatedLife {
					return fmt.Errorf("%s on %s: %d certificates, error %q; it was not replaced", svid.Identity, node, len(svid.Chain), svid.LastError)
				}
			}
		}
		return nil
	})
}

func turnEverything(ctx context.Context, s *suite) (string, error) {
	refs := []string{walkNamespace + "/turn-near", walkNamespace + "/turn-far"}
	if err := s.getThrough(ctx, 20*time.Second, refs...); err != nil {
		return "", err
	}
	before, err := s.tally(ctx, refs...)
	if err != nil {
		return "", err
	}
	was, err := s.caStatus(ctx)
	if err != nil {
		return "", err
	}
	begin := time.Now()
	for _, what := range []string{"intermediate", "root"} {
		if _, err := s.culvert(ctx, "ca", "rotate", what, "--culvert-namespace", systemNamespace); err != nil {
			return "", err
		}
	}
	var phases []string
	err = until(ctx, 4*time.Minute, func(ctx context.Context) error {
		now, err := s.caStatus(ctx)
		if err != nil {
			return err
		}
		if n := len(phases); n == 0 || phases[n-1] != now.Phase {
			phases = append(phases, now.Phase)
		}
		if now.Phase != "stable" || now.Roots[0].SHA256 == was.Roots[0].SHA256 || len(now.Roots) != 1 {
			return fmt.Errorf("phase %s, %d roots", now.Phase, len(now.Roots))
		}
		return nil
	})
	took := time.Since(begin)
	if err != nil {
		return strings.Join(phases, ", "), err
	}
	// The load goes on until there were enough, and every leaf of the old root has expired.
	var now tally
	err = until(ctx, 2*time.Minute, func(ctx context.Context) error {
		if now, err = s.tally(ctx, refs...); err != nil {
			return err
		}
		if n := now.since(before, refs[0]).Tries + now.since(before, refs[1]).Tries; n < manyConnections || time.Since(begin) < took+rotatedLife {
			return fmt.Errorf("%d connections so far", n)
		}
		return nil
	})
	err = errors.Join(err, s.onlyRoot(ctx, was.Roots[0].SHA256))
	tries, failed := 0, 0
	for _, ref := range refs {
		c := now.since(before, ref)
		tries, failed = tries+c.Tries, failed+c.Failed
		if c.Failed > 0 {
			err = errors.Join(err, fmt.Errorf("%s: %s: %s", ref, c, c.LastError))
		}
	}
	renewed := 0
	for _, l := range s.logs.lines("agent", begin) {
		if l.get("msg") == "SVID issued" && strings.HasSuffix(l.get("identity"), "/sa/turned") {
			renewed++
		}
	}
	if renewed < 3 {
		err = errors.Join(err, fmt.Errorf("the server's leaf was renewed %d times only", renewed))
	}
	got := fmt.Sprintf("%d failed of %d, root replaced in %.0f s (%s), %d leaves of the server", failed, tries, took.Seconds(), strings.Join(phases, ", "), renewed)
	return got, err
}
