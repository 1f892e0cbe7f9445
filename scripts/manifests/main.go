// Command manifests checks what is in daemonset/ against a real API server.
//
//	go run ./scripts/manifests            # starts etcd and kube-apiserver of its own: everything
//	go run ./scripts/manifests -equal     # kustomize against the Helm chart alone: no API server
//	go run ./scripts/manifests -cluster   # against the cluster of KUBECONFIG: dry runs, which change nothing
//
// KUBECTL names kubectl, HELM names helm. Without KUBECTL, both kubectl and the API server are those that the end-to-end
// tests build; without HELM, helm is built from scripts/tools/helm.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// limit bounds a run, the building of helm included.
const limit = 20 * time.Minute

func main() {
	equal := flag.Bool("equal", false, "only compare kustomize's result with the Helm chart's")
	cluster := flag.Bool("cluster", false, "dry runs against the cluster of KUBECONFIG instead of an API server of its own")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := run(ctx, *equal, *cluster); err != nil {
		fmt.Fprintln(os.Stderr, "manifests:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, equal, cluster bool) error {
	if err := os.Chdir(moduleRoot(ctx)); err != nil {
		return fmt.Errorf("top folder of the checkout: %w", err)
	}
	t, err := findTools(ctx)
	if err != nil {
		return err
	}
	r := &report{}
	checkChart(ctx, t, r)
	switch {
	case equal:
	case cluster:
		checkCluster(ctx, kubectl{path: t.kubectl, kubeconfig: os.Getenv("KUBECONFIG")}, r)
	default:
		if err := checkOnOwnServer(ctx, t, r); err != nil {
			return err
		}
	}
	return r.end()
}

// checkOnOwnServer runs what changes things, on an API server that nobody else uses.
func checkOnOwnServer(ctx context.Context, t tools, r *report) (err error) {
	server, err := startServer(ctx, t)
	if err != nil {
		return err
	}
	defer func() {
		if stopErr := server.stop(); err == nil {
			err = stopErr
		}
	}()
	k := server.kubectl
	if _, err := k.run(ctx, "", "apply", "-f", namespaceFile); err != nil {
		return err
	}
	checkDryRun(ctx, k, r)
	checkInstall(ctx, k, r)
	checkAdmission(ctx, server, r)
	checkPermissions(ctx, server, r)
	checkExamples(ctx, server, r)
	checkUninstall(ctx, k, r)
	return nil
}

// report counts and prints what was checked.
type report struct{ passed, failed int }

// check prints one line; problem is "" when all is well.
func (r *report) check(problem, format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	if problem == "" {
		r.passed++
		fmt.Println("ok  ", what)
		return
	}
	r.failed++
	fmt.Printf("FAIL %s\n     %s\n", what, problem)
}

// end prints the sum.
func (r *report) end() error {
	fmt.Printf("%d passed, %d failed\n", r.passed, r.failed)
	if r.failed > 0 {
		return fmt.Errorf("%d checks failed", r.failed)
	}
	return nil
}
