package main

import (
	"strings"
	"testing"
)

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
