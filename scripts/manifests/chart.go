package main

import (
	"context"
	"fmt"
	"strings"
)

const chart = "daemonset/chart"

// chartValues says which values make the chart the same as which kustomization.
func chartValues() []struct {
	dir    string
	values []string
} {
	return []struct {
		dir    string
		values []string
	}{
		{"daemonset", nil},
		{"daemonset/overlays/kind", []string{"-f", chart + "/values-kind.yaml"}},
		{"daemonset/overlays/production", []string{"-f", chart + "/values-production.yaml"}},
		{"daemonset/overlays/istio-ca", []string{"--set", "ca.type=istio"}},
		{"daemonset/overlays/spire", []string{"--set", "ca.type=spire"}},
	}
}

// checkChart lints the chart and compares what it makes with kustomize's result, object by object and in order.
func checkChart(ctx context.Context, t tools, r *report) {
	for _, c := range chartValues() {
		_, err := output(ctx, "", t.helm, append([]string{"lint", "--strict", chart}, c.values...)...)
		r.check(text(err), "helm lint %s", strings.Join(c.values, " "))
		r.check(compareChart(ctx, t, c.dir, c.values), "the chart %s makes what %s makes", strings.Join(c.values, " "), c.dir)
	}
	_, err := output(ctx, "", t.helm, "template", "culvert", chart, "--set", "agent.nosuch=1")
	r.check(refusal(err, "nosuch"), "helm refuses a value that the schema does not know")
}

func compareChart(ctx context.Context, t tools, dir string, values []string) string {
	kustomized, err := output(ctx, "", t.kubectl, "kustomize", dir)
	if err != nil {
		return text(err)
	}
	templated, err := output(ctx, "", t.helm, append([]string{"template", "culvert", chart}, values...)...)
	if err != nil {
		return text(err)
	}
	a, err := parse(kustomized)
	if err != nil {
		return text(err)
	}
	b, err := parse(templated)
	if err != nil {
		return text(err)
	}
	if len(a) == 0 {
		return "kustomize makes nothing"
	}
	return strings.Join(differences("kustomize", a, "helm", b), "\n     ")
}

// refusal is a problem if err is none, or does not say what it should.
func refusal(err error, says string) string {
	switch {
	case err == nil:
		return "was accepted"
	case !strings.Contains(err.Error(), says):
		return fmt.Sprintf("was refused without saying %q: %v", says, err)
	}
	return ""
}
