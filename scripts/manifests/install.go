package main

import (
	"context"
	"fmt"
	"strings"
	"time"
)

const (
	namespace     = "culvert-system"
	namespaceFile = "daemonset/base/namespace.yaml"
)

// kustomizations are what people apply.
func kustomizations() []string {
	return []string{
		"daemonset", "daemonset/overlays/kind", "daemonset/overlays/production", "daemonset/overlays/istio-ca",
		"daemonset/overlays/spire", "daemonset/overlays/monitoring", "daemonset/crds",
	}
}

// checkCluster makes dry runs on somebody's cluster and leaves it as it was: where Culvert's namespace is missing, it is
// there only meanwhile.
func checkCluster(ctx context.Context, k kubectl, r *report) {
	if _, err := k.run(ctx, "", "get", "namespace", namespace); err != nil {
		if _, err := k.run(ctx, "", "apply", "-f", namespaceFile); err != nil {
			r.check(text(err), "a namespace for dry runs")
			return
		}
		defer func() {
			_, err := k.run(context.WithoutCancel(ctx), "", "delete", "-f", namespaceFile, "--timeout=2m")
			r.check(text(err), "the namespace for dry runs is removed")
		}()
	}
	checkDryRun(ctx, k, r)
}

// checkDryRun lets the API server judge every kustomization. The namespace must be there: a dry run makes none.
func checkDryRun(ctx context.Context, k kubectl, r *report) {
	for _, dir := range kustomizations() {
		_, err := k.run(ctx, "", "apply", "--dry-run=server", "--validate=strict", "--warnings-as-errors", "-k", dir)
		r.check(text(err), "dry run: apply -k %s", dir)
	}
	_, err := k.run(ctx, "", "apply", "--dry-run=server", "--validate=strict", "-n", "default", "-f", "daemonset/examples")
	r.check(text(err), "dry run: apply -f daemonset/examples")
}

// checkInstall applies for good, and once more: an object that the API server's defaults keep changing would be
// "configured" each time.
func checkInstall(ctx context.Context, k kubectl, r *report) {
	_, err := k.run(ctx, "", "apply", "--validate=strict", "-k", "daemonset")
	r.check(text(err), "apply -k daemonset")
	out, err := k.run(ctx, "", "apply", "--validate=strict", "-k", "daemonset")
	problem := text(err)
	for line := range strings.Lines(out) {
		// kubectl patches a budget's selector each time, with what it has already.
		if !strings.HasSuffix(strings.TrimSpace(line), " unchanged") && !strings.HasPrefix(line, "poddisruptionbudget") {
			problem += line
		}
	}
	r.check(problem, "apply -k daemonset once more changes nothing")
}

// checkUninstall deletes everything and looks what is left. It tells how long an agent keeps its permissions after it
// could know.
func checkUninstall(ctx context.Context, k kubectl, r *report) {
	const policy = `{"apiVersion":"security.istio.io/v1","kind":"PeerAuthentication",` +
		`"metadata":{"name":"kept","namespace":"default"},"spec":{"mtls":{"mode":"STRICT"}}}`
	_, err := k.run(ctx, policy, "apply", "-f", "-")
	r.check(text(err), "a policy before uninstalling")

	rendered, err := k.run(ctx, "", "kustomize", "daemonset")
	if err != nil {
		r.check(text(err), "kustomize daemonset")
		return
	}
	objects, err := parse(rendered)
	if err != nil {
		r.check(text(err), "kustomize daemonset")
		return
	}
	start := time.Now()
	_, err = k.run(ctx, "", "delete", "-k", "daemonset", "--wait=false")
	r.check(text(err), "delete -k daemonset (%d objects, %s from first to last)", len(objects), time.Since(start).Round(time.Millisecond))
	var left []string
	for _, o := range objects {
		if o.text("kind") == "Namespace" {
			continue // goes when its controller, which is not here, has emptied it
		}
		out, err := k.run(ctx, "", "get", o.text("kind"), o.text("metadata", "name"), "-n", namespace, "--ignore-not-found", "-o", "name")
		if err != nil || out != "" {
			left = append(left, o.name()+" "+text(err))
		}
	}
	r.check(strings.Join(left, "\n     "), "nothing is left of it")
	out, err := k.run(ctx, "", "get", "peerauthentication", "-n", "default", "--no-headers")
	problem := text(err)
	if problem == "" && !strings.Contains(out, "STRICT") {
		problem = fmt.Sprintf("kubectl get prints %q", out)
	}
	r.check(problem, "the policy is still there, and kubectl get shows its mode")
}
