// Package e2e tests the program as a whole, on the lab.
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/e2e/demo"
)

const (
	nginx       = "test/nginx"
	legacyApp   = "test/legacy-app"
	productpage = "default/productpage"
)

// build makes the program as `make build` does; it is executed below a folder that only root can enter.
func build(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: makes network namespaces and attaches BPF programs")
	}
	binary := filepath.Join(t.TempDir(), "culvert")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "../cmd/culvert").CombinedOutput()
	if err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return binary
}

func startMesh(t *testing.T) *demo.Mesh {
	t.Helper()
	o := demo.MeshOptions{
		Binary: build(t), RunDir: filepath.Join(t.TempDir(), "run"), Prefix: fmt.Sprintf("e2e%d", os.Getpid()),
		Progress: func(s string) { t.Log(s) },
	}
	// The unprivileged tunnel has to pass through the folders above its socket.
	for _, dir := range []string{filepath.Dir(o.RunDir), filepath.Dir(filepath.Dir(o.RunDir))} {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	m, err := demo.StartMesh(t.Context(), o)
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestWalkthrough(t *testing.T) {
	m := startMesh(t)
	for _, name := range demo.Steps() {
		// Both versions in one play: a policy is applied once, and the rotation takes its time once.
		rows, err := m.Play(t.Context(), name, []int{4, 6}, func(string) {})
		if err != nil {
			t.Errorf("step %q: %v", name, err)
		}
		for _, version := range []int{4, 6} {
			t.Run(fmt.Sprintf("%s/IPv%d", name, version), func(t *testing.T) { checkRows(t, rows, version) })
		}
	}
}

func checkRows(t *testing.T, rows []demo.Row, version int) {
	played := 0
	for _, row := range rows {
		if row.IP != version {
			continue
		}
		played++
		t.Run(strings.NewReplacer("/", ".").Replace(row.From+" to "+row.To), func(t *testing.T) {
			if !row.OK {
				t.Errorf("got %s, want %s: %s", row.Got, row.Expected, strings.Join(row.Problems, "; "))
			}
		})
	}
	if played == 0 {
		t.Error("no row was played")
	}
}

// attacker tries plaintext on a STRICT workload without a pause.
type attacker struct {
	cancel    context.CancelFunc
	wg        sync.WaitGroup
	mu        sync.Mutex
	tries     int
	succeeded []demo.Attempt
}

func attack(ctx context.Context, m *demo.Mesh) *attacker {
	a := new(attacker)
	ctx, a.cancel = context.WithCancel(ctx)
	for _, version := range []int{4, 6} {
		a.wg.Go(func() {
			for ctx.Err() == nil {
				result := m.Request(ctx, legacyApp, m.PodAddr(productpage, version, 9080), "attack")
				a.mu.Lock()
				a.tries++
				if result.OK || result.Connected {
					a.succeeded = append(a.succeeded, result)
				}
				a.mu.Unlock()
			}
		})
	}
	return a
}

func (a *attacker) stop() {
	a.cancel()
	a.wg.Wait()
}

func TestStrictHoldsWhenOurProcessesAreKilled(t *testing.T) {
	m := startMesh(t)
	if err := m.Apply(t.Context(), "default-strict"); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		killed []string
	}{
		{"agent", []string{"agent"}},
		{"tunnel", []string{"tunnel"}},
		{"both", []string{"agent", "tunnel"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			waitFor(t, "mTLS before", func() bool { return reach(t, m) })
			a := attack(t.Context(), m)
			for _, which := range tt.killed {
				m.Kill(which)
			}
			time.Sleep(time.Second)
			for _, which := range tt.killed {
				if err := m.Start(t.Context(), which); err != nil {
					t.Error(err)
				}
			}
			waitFor(t, "mTLS after the restart", func() bool { return reach(t, m) })
			a.stop()
			if len(a.succeeded) > 0 {
				t.Errorf("%d of %d plaintext attempts went through, the first: %+v", len(a.succeeded), a.tries, a.succeeded[0])
			}
			if a.tries < 20 {
				t.Errorf("only %d attempts were made", a.tries)
			}
			if err := m.Check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// reach tries mTLS over both IP versions.
func reach(t *testing.T, m *demo.Mesh) bool {
	for _, version := range []int{4, 6} {
		if !m.Request(t.Context(), nginx, m.ServiceAddr(productpage, version, 9080), "mesh").OK {
			return false
		}
	}
	return true
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if done() {
			return
		}
	}
	t.Fatalf("%s: not within 15 s", what)
}
