package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	kubeexec "github.com/culvert-mesh/culvert/agent/source/kube/exec"
)

// beCulvert has this test's own binary be culvert.
const beCulvert = "CULVERT_TEST_IS_CULVERT"

func TestMain(m *testing.M) {
	if os.Getenv(beCulvert) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestCompletion(t *testing.T) {
	f := &fakeFleet{agents: map[string]string{"worker-1": "", "worker-2": "", "other": ""}, pods: map[string]string{"shop/cart-1": "a", "shop/till-1": "a", "old/cart": "a"}}
	for args, want := range map[string]string{
		"status --node work":               "worker-1 worker-2 :4",
		"status -o ":                       "table wide json yaml :4",
		"describe pod shop/":               "shop/cart-1 shop/till-1 :4",
		"describe pod ":                    "old/cart shop/cart-1 shop/till-1 :4",
		"describe pod -n shop c":           "cart-1 :4",
		"describe pod shop/cart-1 ":        ":4",
		"can shop/cart-1 old":              "old/cart :4",
		"describe pod nobody":              ":4",
		"describe service --node worker-2": "worker-2 :4",
		"describe pod -n s":                "shop :4",
		"can -n ":                          "old shop :4",
		"certs shop/t":                     "shop/till-1 :4",
		"certs verify shop/till-1 old":     "old/cart :4",
	} {
		words := strings.Split(args, " ")
		stdout, _, err := runAnswers(t.Context(), f, append([]string{"__complete"}, words...)...)
		if got := strings.Join(strings.Fields(stdout), " "); err != nil || got != want {
			t.Errorf("%q: %q, want %q, %v", args, got, want, err)
		}
	}
	stdout, _, err := runAnswers(t.Context(), nil, "__complete", "describe", "pod", "")
	if err != nil || strings.TrimSpace(stdout) != ":4" {
		t.Errorf("without a cluster: %q, %v", stdout, err)
	}
}

func TestKubectlsPluginIsCalledAsOne(t *testing.T) {
	for arg0, want := range map[string]string{
		"/usr/local/bin/kubectl-culvert": "kubectl culvert", "kubectl-culvert.exe": "kubectl culvert", "/usr/bin/culvert": "culvert", "": "culvert",
	} {
		if got := displayName(arg0); got != want {
			t.Errorf("%s: %s", arg0, got)
		}
	}
}

// slowCluster answers when nobody waits any more.
type slowCluster struct{ cluster }

func (slowCluster) AgentNodes(context.Context) (map[string]string, error) {
	time.Sleep(time.Minute)
	return map[string]string{"late": ""}, nil
}

func TestCompletionDoesNotWaitForASlowCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		r := &reach{open: func(kubeexec.Options) (cluster, error) { return slowCluster{}, nil }}
		names, _ := r.completeNodes(newStatusCommand(), nil, "")
		if len(names) != 0 || time.Since(begin) != completionTimeout {
			t.Errorf("%q after %s", names, time.Since(begin))
		}
		time.Sleep(time.Minute) // it ends by itself
	})
}

// TestKubectlCompletes has kubectl run what `culvert completion kubectl` wrote.
func TestKubectlCompletes(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script, err := runRoot("completion", "kubectl")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"kubectl_complete-culvert": script,
		"kubectl-culvert":          fmt.Sprintf("#!/bin/sh\n%s=1 exec %s \"$@\"\n", beCulvert, self),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run := func(program string, args ...string) string {
		c := exec.Command(program, args...)
		c.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "KUBECONFIG=/no/such/file", "HOME="+dir)
		out, err := c.Output()
		if err != nil {
			t.Fatalf("%s %q: %v: %s", program, args, err, out)
		}
		return strings.Join(strings.Fields(string(out)), " ")
	}
	for args, want := range map[string]string{
		"stat":          "status Show how every node stands :4",
		"describe po":   "pod Tell what the mesh makes of a pod :4",
		"can --output ": "table wide json yaml :4",
		"can --node ":   ":4", // there is no cluster, and nobody complains
	} {
		if got := run(filepath.Join(dir, "kubectl_complete-culvert"), strings.Split(args, " ")...); got != want {
			t.Errorf("%q: %q, want %q", args, got, want)
		}
		kubectl, err := exec.LookPath("kubectl")
		if err != nil {
			t.Log("without kubectl only its part is played:", err)
			continue
		}
		if got := run(kubectl, append([]string{"__complete", "culvert"}, strings.Split(args, " ")...)...); got != want {
			t.Errorf("kubectl, %q: %q, want %q", args, got, want)
		}
	}
}
