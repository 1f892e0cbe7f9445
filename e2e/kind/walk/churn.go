package walk

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

const (
	churnPods  = 200
	churnBatch = 20
)

// churn makes and deletes pods while policies change and plaintext is tried on all of them.
func churn() group {
	return group{name: "pod churn", setup: func(ctx context.Context, s *suite) error {
		if err := s.apply(ctx, strictWalk+"---\n"+churnService()); err != nil {
			return err
		}
		at, err := s.service(ctx, walkNamespace+"/churn", 4, 9080)
		if err != nil {
			return err
		}
		url := page(at, "churn")
		return s.start(ctx, time.Minute,
			looper(outside, "attack-churn", s.node("b"), url, "--interval 10ms --timeout 1s"),
			looper(walkNamespace, "load-churn", s.node("b"), url, "--interval 100ms --timeout 5s"))
	}, teardown: func(ctx context.Context, s *suite) error {
		_, err := s.kubectl(ctx, "delete", "pods", "--namespace="+walkNamespace, "--selector=app=churn", "--grace-period=1", "--wait=false")
		return errors.Join(err, s.stop(ctx, outside, "attack-churn"), s.stop(ctx, walkNamespace, "load-churn"), s.remove(ctx, churnService()),
			s.remove(ctx, flips()[1]))
	}, rows: []row{
		{name: fmt.Sprintf("%d pods made and deleted in batches while policies change", churnPods), where: "both", expected: "never reached in plaintext",
			limit: 6 * time.Minute, do: churnAll},
		{name: "what is pinned afterwards", where: "both", expected: "the pods that are left", nodes: true, do: pinsMatch},
	}}
}

// churnService leads to pods from the moment they have an address.
func churnService() string {
	return strings.Replace(serviceManifest(walkNamespace, "churn", "churn", "", 9080), "spec:\n", "spec:\n  publishNotReadyAddresses: true\n", 1)
}

// flips are policies that replace each other. Under each, the port that is attacked is STRICT.
func flips() []string {
	const head = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: churn\n  namespace: " + walkNamespace +
		"\nspec:\n  selector:\n    matchLabels:\n      app: churn\n"
	return []string{
		head + "  mtls: {mode: STRICT}\n  portLevelMtls:\n    9999: {mode: PERMISSIVE}\n",
		head + "  mtls: {mode: PERMISSIVE}\n  portLevelMtls:\n    9080: {mode: STRICT}\n",
		head + "  mtls: {mode: UNSET}\n",
	}
}

func churnAll(ctx context.Context, s *suite) (string, error) {
	begin := time.Now()
	for made := 0; made < churnPods; made += churnBatch {
		var docs []string
		var names []string
		for i := range churnBatch {
			name := fmt.Sprintf("churn-%03d", made+i)
			names = append(names, name)
			docs = append(docs, spec{namespace: walkNamespace, name: name, node: s.nodes[i%2], labels: map[string]string{"app": "churn"}, command: "serve --http 9080"}.manifest(s.Tools))
		}
		if _, err := s.Cluster.Kubectl(ctx, strings.NewReader(strings.Join(docs, "---\n")), "create", "--validate=ignore", "--filename=-"); err != nil {
			return "", err
		}
		if err := s.apply(ctx, flips()[made/churnBatch%len(flips())]); err != nil {
			return "", err
		}
		if err := s.waitPods(ctx, 90*time.Second, append([]string{"--namespace=" + walkNamespace}, names...)...); err != nil {
			return "", fmt.Errorf("after %d pods: %w", made, err)
		}
		if _, err := s.kubectl(ctx, append([]string{"delete", "pod", "--namespace=" + walkNamespace, "--grace-period=1", "--wait=false"}, names...)...); err != nil {
			return "", err
		}
	}
	attack, err := s.counted(ctx, outside+"/attack-churn")
	if err != nil {
		return "", err
	}
	load, err := s.counted(ctx, walkNamespace+"/load-churn")
	got := fmt.Sprintf("%d of %d plaintext, %d mTLS, %.0f pods a minute", attack.Succeeded, attack.Tries, load.Succeeded, churnPods/time.Since(begin).Minutes())
	switch {
	case err != nil:
	case attack.Succeeded > 0:
		err = fmt.Errorf("plaintext went through: %s", attack)
	case load.Succeeded < 10 || attack.Tries < 100:
		err = fmt.Errorf("the loops prove nothing: in the mesh %s, outside %s", load, attack)
	}
	return got, err
}

// pinsMatch compares what is enforced on each node with the pods that are annotated there.
func pinsMatch(ctx context.Context, s *suite) (string, error) {
	var got []string
	err := until(ctx, 45*time.Second, func(ctx context.Context) error {
		var list podList
		if err := s.getJSON(ctx, &list, "pods", "--all-namespaces"); err != nil {
			return err
		}
		enrolled := map[string]int{}
		for _, p := range list.Items {
			if p.Metadata.Annotations[redirection] == "enabled" && (p.Status.Phase == "Running" || p.Status.Phase == "Pending") {
				enrolled[p.Spec.NodeName]++
			}
		}
		got = nil
		var errs []error
		for node := range s.before {
			pinned, err := s.pinnedPods(ctx, node)
			got = append(got, fmt.Sprintf("%s: %d pins, %d pods", node, pinned, enrolled[node]))
			if err == nil && pinned != enrolled[node] {
				err = fmt.Errorf("node %s: %d pods are pinned, %d are enrolled", node, pinned, enrolled[node])
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	return strings.Join(got, "; "), err
}
