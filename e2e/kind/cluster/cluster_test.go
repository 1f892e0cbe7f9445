package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func newCluster(t *testing.T, kubeconfig, image string) *Cluster {
	t.Helper()
	t.Setenv("E2E_KUBECONFIG", kubeconfig)
	t.Setenv("KIND_NODE_IMAGE", image)
	return New(Config{Log: slog.New(slog.DiscardHandler)})
}

func TestModes(t *testing.T) {
	ours := newCluster(t, "", "")
	if !ours.isolated() || ours.Netns() != "/run/netns/culvert-e2e" || len(ours.dockerEnv()) == 0 {
		t.Errorf("ours: netns %q, docker %v", ours.Netns(), ours.dockerEnv())
	}
	stock := newCluster(t, "", "kindest/node:v1.34.0")
	if stock.isolated() || stock.Netns() != "" || len(stock.dockerEnv()) > 0 {
		t.Errorf("with kind's image: netns %q, docker %v", stock.Netns(), stock.dockerEnv())
	}
}

// TestForeignCluster checks that what needs a node says so, instead of trying the machine's docker.
func TestForeignCluster(t *testing.T) {
	c := newCluster(t, "/home/me/.kube/config", "")
	if c.Kubeconfig() != "/home/me/.kube/config" || c.Netns() != "" {
		t.Errorf("kubeconfig %q, netns %q", c.Kubeconfig(), c.Netns())
	}
	_, execErr := c.Exec(t.Context(), Worker, nil, "true")
	for name, err := range map[string]error{
		"Exec":        execErr,
		"LoadImage":   c.LoadImage(t.Context(), "image.tar"),
		"RestartNode": c.RestartNode(t.Context(), Worker),
	} {
		if !errors.Is(err, ErrNoNodes) {
			t.Errorf("%s: error %v, want ErrNoNodes", name, err)
		}
	}
}

func TestUnknownNode(t *testing.T) {
	_, err := newCluster(t, "", "").Exec(t.Context(), "worker", nil, "true")
	if err == nil || !strings.Contains(err.Error(), Worker) {
		t.Errorf("error %v, want one that names the nodes that there are", err)
	}
}

func TestMissingPackages(t *testing.T) {
	look := func(name string) (string, error) {
		if slices.Contains([]string{"dockerd", "docker", "runc"}, name) {
			return "", errors.New("not found")
		}
		return "/usr/bin/" + name, nil
	}
	if got, want := missingPackages(needed(true), look), []string{"docker.io", "runc"}; !slices.Equal(got, want) {
		t.Errorf("missing %v, want %v", got, want)
	}
	if got := missingPackages(needed(false), look); len(got) > 0 {
		t.Errorf("with the machine's docker, missing %v", got)
	}
}

func TestStartedSince(t *testing.T) {
	since := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	tests := map[string]struct {
		json string
		ok   bool
	}{
		"started anew":   {`{"ready":true,"state":{"running":{"startedAt":"2026-01-01T12:00:05Z"}}}`, true},
		"from before":    {`{"ready":true,"state":{"running":{"startedAt":"2026-01-01T11:00:00Z"}}}`, false},
		"not ready":      {`{"ready":false,"state":{"running":{"startedAt":"2026-01-01T12:00:05Z"}}}`, false},
		"about to start": {`{"ready":false,"state":{"waiting":{"reason":"CrashLoopBackOff"}}}`, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var list pods
			text := `{"items":[{"metadata":{"name":"p"},"status":{"containerStatuses":[` + test.json + `]}}]}`
			if err := json.Unmarshal([]byte(text), &list); err != nil {
				t.Fatal(err)
			}
			if err := list.startedSince(since); (err == nil) != test.ok {
				t.Errorf("error %v, want ok = %t", err, test.ok)
			}
		})
	}
	if err := (pods{}).startedSince(since); err == nil {
		t.Error("no pods at all are taken for running ones")
	}
}

func TestCommandErrors(t *testing.T) {
	_, err := command{}.run(t.Context(), "sh", "-c", "echo the reason >&2; exit 3")
	if err == nil || !strings.Contains(err.Error(), "the reason") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("error %v, want the exit status and what was said", err)
	}
	start := time.Now()
	_, err = command{limit: 50 * time.Millisecond}.run(t.Context(), "sleep", "60")
	if err == nil || !strings.Contains(err.Error(), "no end after 50ms") || time.Since(start) > 10*time.Second {
		t.Errorf("error %v after %s, want the limit's", err, time.Since(start))
	}
}

func TestPoll(t *testing.T) {
	tries := 0
	err := poll(t.Context(), time.Millisecond, func(context.Context) error {
		if tries++; tries < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	if err != nil || tries != 3 {
		t.Errorf("%d tries, %v", tries, err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Millisecond, errors.New("too late"))
	defer cancel()
	err = poll(ctx, time.Millisecond, func(context.Context) error { return errors.New("not yet") })
	if err == nil || !strings.Contains(err.Error(), "too late") || !strings.Contains(err.Error(), "not yet") {
		t.Errorf("error %v, want the cause and the last error", err)
	}
}

func TestNonRoot(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("runs as root")
	}
	if err := newCluster(t, "", "").Up(t.Context(), Options{IPFamily: Dual}); err == nil {
		t.Error("Up does not say that it needs root")
	}
}
