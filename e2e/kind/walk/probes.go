package walk

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// probeKinds are the kubelet's ways to look at a pod.
func probeKinds() map[string]string {
	return map[string]string{
		"http": "httpGet: {path: /healthz, port: 9080}",
		"tcp":  "tcpSocket: {port: 9000}",
		"grpc": "grpc: {port: 9001}",
		"exec": "exec: {command: [curl, -sf, \"http://127.0.0.1:9080/healthz\"]}",
	}
}

// probes has a pod with each kind of probe, which must become ready under STRICT and stay so.
func probes() group {
	g := group{name: "kubelet's probes under STRICT", setup: setupProbes, teardown: func(ctx context.Context, s *suite) error {
		return s.stop(ctx, walkNamespace, "probe-http", "probe-tcp", "probe-grpc", "probe-exec")
	}}
	for _, kind := range []string{"http", "tcp", "grpc", "exec"} {
		g.rows = append(g.rows, row{name: kind, where: sameNode, expected: "ready and stays", do: func(ctx context.Context, s *suite) (string, error) {
			return s.staysReady(ctx, "probe-"+kind)
		}})
	}
	g.rows = append(g.rows, row{name: "plaintext to the probed ports from a pod of that node", where: sameNode, expected: "refused",
		do: func(ctx context.Context, s *suite) (string, error) {
			from, err := s.near(auditor, walkNamespace+"/probe-http", sameNode)
			if err != nil {
				return "", err
			}
			var urls []string
			for kind, port := range map[string]uint16{"http": 9080, "tcp": 9000, "grpc": 9001} {
				for _, version := range s.versions() {
					urls = append(urls, page(s.pods[walkNamespace+"/probe-"+kind].at(version, port), ""))
				}
			}
			return s.want(ctx, comeTrue, from, wantRefused, urls...)
		}},
		row{name: "mTLS to a probed port", where: acrossNodes, expected: "ok", do: func(ctx context.Context, s *suite) (string, error) {
			from, err := s.near(nginx, walkNamespace+"/probe-http", acrossNodes)
			if err != nil {
				return "", err
			}
			return s.want(ctx, comeTrue, from, wantOK, page(s.pods[walkNamespace+"/probe-http"].at(4, 9080), ""))
		}},
	)
	return g
}

func setupProbes(ctx context.Context, s *suite) error {
	if err := s.apply(ctx, strictWalk); err != nil {
		return err
	}
	var specs []spec
	for kind, probe := range probeKinds() {
		var extra strings.Builder
		for _, use := range []string{"startupProbe", "readinessProbe", "livenessProbe"} {
			fmt.Fprintf(&extra, "    %s:\n      %s\n      periodSeconds: 1\n      timeoutSeconds: 3\n      failureThreshold: 10\n", use, probe)
		}
		specs = append(specs, spec{namespace: walkNamespace, name: "probe-" + kind, node: s.node("a"), labels: map[string]string{"app": "probe"},
			command: "serve --http 9080 --tcp 9000 --grpc 9001", extra: extra.String()})
	}
	return s.start(ctx, time.Minute, specs...)
}

// staysReady looks at a ready pod for as long as ten probes take, which is when the kubelet would give it up.
func (s *suite) staysReady(ctx context.Context, name string) (string, error) {
	const stays = 12 * time.Second
	var p podObject
	for {
		if err := s.getJSON(ctx, &p, "pod", name, "--namespace="+walkNamespace); err != nil {
			return "", err
		}
		if !p.isReady() || p.restarts() > 0 {
			return "", fmt.Errorf("pod %s: ready %t, %d restarts", name, p.isReady(), p.restarts())
		}
		since := p.readySince()
		if time.Since(since) > stays {
			return fmt.Sprintf("ready for %s", time.Since(since).Round(time.Second)), nil
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(time.Until(since.Add(stays + time.Second))):
		}
	}
}

// readySince is when the pod became what it is.
func (o podObject) readySince() time.Time {
	for _, c := range o.Status.Conditions {
		if c.Type == "Ready" {
			if t, err := time.Parse(time.RFC3339, c.LastTransitionTime); err == nil {
				return t
			}
		}
	}
	return time.Now()
}

// firstPackets shows that a pod is covered before its first container runs.
func firstPackets() group {
	return group{name: "first packet", setup: func(ctx context.Context, s *suite) error {
		return errors.Join(s.applyPolicies(ctx, "mesh-wide-strict"), s.apply(ctx, s.firstManifest()))
	}, teardown: func(ctx context.Context, s *suite) error {
		_, err := s.kubectl(ctx, "delete", "job,statefulset,service", "--namespace="+walkNamespace, "--selector=culvert.test/first=yes",
			"--wait=false", "--ignore-not-found")
		return errors.Join(err, s.applyPolicies(ctx))
	}, rows: []row{
		{name: "init container and container of a Job to a STRICT pod", where: sameNode, expected: "both ok at the first try", do: jobDone("a")},
		{name: "init container and container of a Job to a STRICT pod", where: acrossNodes, expected: "both ok at the first try", do: jobDone("b")},
		{name: "a Job outside the mesh to a STRICT pod", where: acrossNodes, expected: "refused", do: jobRefused},
		{name: "StatefulSet's pod by its name: identity", where: acrossNodes, expected: "ns/culvert-walk/sa/db", do: statefulIdentity},
	}}
}

// firstManifest has Jobs whose containers ask exactly once, and a StatefulSet.
func (s *suite) firstManifest() string {
	var docs []string
	url := page(s.pods[productpage].at(4, 9080), "first")
	for _, letter := range []string{"a", "b"} {
		docs = append(docs, jobManifest(walkNamespace, "first-"+letter, s.node(letter), s.Tools, url))
	}
	docs = append(docs, jobManifest(outside, "first-outside", s.node("b"), s.Tools, url))
	docs = append(docs, fmt.Sprintf(`apiVersion: v1
kind: ServiceAccount
metadata: {name: db, namespace: %[1]s}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: %[1]s, labels: {culvert.test/first: "yes"}}
spec:
  clusterIP: None
  selector: {app: db}
  ports: [{name: db, port: 9080}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: %[1]s, labels: {culvert.test/first: "yes"}}
spec:
  serviceName: db
  replicas: 1
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db, culvert.test/walk: "yes"}}
    spec:
      serviceAccountName: db
      terminationGracePeriodSeconds: 1
      nodeName: %[2]s
      containers:
      - {name: app, image: %[3]q, imagePullPolicy: IfNotPresent, args: [serve, --http, "9080"]}
`, walkNamespace, s.node("a"), s.Tools))
	return strings.Join(docs, "---\n")
}

func jobManifest(namespace, name, node, image, url string) string {
	return fmt.Sprintf(`apiVersion: batch/v1
kind: Job
metadata: {name: %[2]s, namespace: %[1]s, labels: {culvert.test/first: "yes"}}
spec:
  backoffLimit: 0
  template:
    metadata: {labels: {job: %[2]s}}
    spec:
      restartPolicy: Never
      nodeName: %[3]s
      initContainers:
      - {name: init, image: %[4]q, imagePullPolicy: IfNotPresent, args: [first, --url, %[5]q]}
      containers:
      - {name: app, image: %[4]q, imagePullPolicy: IfNotPresent, args: [first, --url, %[5]q]}
`, namespace, name, node, image, url)
}

func jobDone(letter string) func(context.Context, *suite) (string, error) {
	return func(ctx context.Context, s *suite) (string, error) {
		name := "first-" + letter
		_, err := s.kubectl(ctx, "wait", "job/"+name, "--namespace="+walkNamespace, "--for=condition=Complete", "--timeout=45s")
		logs, logErr := s.kubectl(ctx, "logs", "job/"+name, "--namespace="+walkNamespace, "--all-containers")
		if err != nil {
			return "", fmt.Errorf("%w: its containers said: %s", err, logs)
		}
		return fmt.Sprintf("%d of 2 ok", strings.Count(logs, `"OK":true`)), logErr
	}
}

func jobRefused(ctx context.Context, s *suite) (string, error) {
	if _, err := s.kubectl(ctx, "wait", "job/first-outside", "--namespace="+outside, "--for=condition=Failed", "--timeout=45s"); err != nil {
		return "", err
	}
	logs, err := s.kubectl(ctx, "logs", "--namespace="+outside, "--selector=job=first-outside", "--container=init")
	if err == nil && !strings.Contains(logs, `"Reason":"connection refused"`) {
		err = fmt.Errorf("its container said: %s", logs)
	}
	_, deleteErr := s.kubectl(ctx, "delete", "job", "first-outside", "--namespace="+outside, "--wait=false")
	return "refused", errors.Join(err, deleteErr)
}

func statefulIdentity(ctx context.Context, s *suite) (string, error) {
	if err := s.waitPods(ctx, 45*time.Second, "--namespace="+walkNamespace, "--selector=app=db"); err != nil {
		return "", err
	}
	if err := s.refresh(ctx); err != nil {
		return "", err
	}
	from, err := s.near(nginx, walkNamespace+"/db-0", acrossNodes)
	if err != nil {
		return "", err
	}
	var got string
	err = until(ctx, comeTrue, func(ctx context.Context) error {
		begin := time.Now()
		a, err := s.askOnce(ctx, from, "http://db-0.db.culvert-walk:9080/")
		if err != nil {
			return err
		}
		if err := a.check(wantOK); err != nil {
			return err
		}
		e := s.witness(ctx, 3*time.Second, from, netip.AddrPort{}, a, begin)
		got = strings.TrimPrefix(e.destination, "spiffe://cluster.local/")
		if e.destination != "spiffe://cluster.local/ns/"+walkNamespace+"/sa/db" {
			return fmt.Errorf("the destination proved %q", e.destination)
		}
		return nil
	})
	return got, err
}
