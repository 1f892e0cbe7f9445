package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/e2e/demo"
	"github.com/culvert-mesh/culvert/e2e/nodepage"
)

// ask runs the command line on a node, as root does.
func ask(t *testing.T, m *demo.Mesh, node string, args ...string) (out string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, m.Binary(), append(args, "--local", "--admin-socket", m.AdminSocket(node))...)
	text, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(text), cmd.ProcessState.ExitCode()
}

// answers asks until the answer has all of the words.
func answers(t *testing.T, m *demo.Mesh, node string, words []string, args ...string) string {
	t.Helper()
	var out string
	var missing string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(300 * time.Millisecond) {
		out, _ = ask(t, m, node, args...)
		missing = ""
		for _, w := range words {
			if !strings.Contains(out, w) {
				missing = w
			}
		}
		if missing == "" {
			return out
		}
	}
	t.Errorf("culvert %s: no %q in\n%s", strings.Join(args, " "), missing, out)
	return out
}

// TestAnswers puts the questions that people have to agents under traffic of every kind.
func TestAnswers(t *testing.T) {
	m := startMesh(t)
	to := m.PodAddr(productpage, 4, 9080)
	request := func(from string) demo.Attempt { return m.Request(t.Context(), from, to, "answers") }
	if a := request(legacyApp); !a.OK {
		t.Fatalf("plaintext to a PERMISSIVE port: %+v", a)
	}
	if a := request(nginx); !a.OK {
		t.Fatalf("mTLS: %+v", a)
	}
	t.Run("readiness sees who would be cut off", func(t *testing.T) {
		answers(t, m, "a", []string{"NOT READY", legacyApp}, "readiness", "default")
		if _, code := ask(t, m, "a", "readiness", "default"); code != 1 {
			t.Errorf("exit code %d, want 1", code)
		}
		if _, code := ask(t, m, "a", "readiness", "no-such-namespace"); code == 0 {
			t.Error("a namespace that does not exist is ready")
		}
	})
	t.Run("readiness sees a connection that opened before the window", func(t *testing.T) {
		stop, err := m.Hold(t.Context(), legacyApp, to)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		out, _ := ask(t, m, "a", "readiness", "default", "--window", "1s")
		stop()
		if !strings.Contains(out, "NOT READY: STRICT would refuse 1 peer ") || !strings.Contains(out, legacyApp) {
			t.Errorf("it is open, and not seen:\n%s", out)
		}
		time.Sleep(2 * time.Second)
		if out, _ := ask(t, m, "a", "readiness", "default", "--window", "1s"); strings.Contains(out, "NOT READY") {
			t.Errorf("it is over, and was not open within the window:\n%s", out)
		}
	})
	strictMesh(t, m)
	if a := request(legacyApp); a.OK {
		t.Fatalf("plaintext to a STRICT port: %+v", a)
	}
	t.Run("flows tell of both", func(t *testing.T) {
		answers(t, m, "a", []string{"mtls", "plaintext", "refused", nginx, legacyApp, productpage}, "flows")
		out, _ := ask(t, m, "a", "flows", "-o", "json", "--carried", "refused")
		for line := range strings.Lines(out) {
			var flow struct{ Carried string }
			if err := json.Unmarshal([]byte(line), &flow); err != nil || flow.Carried != "refused" {
				t.Errorf("%q: %v", line, err)
			}
		}
	})
	t.Run("status and description", func(t *testing.T) {
		answers(t, m, "a", []string{"ok", "dev (up "}, "status")
		answers(t, m, "a", []string{"enrolled", "STRICT", "default/default-strict", nginx, legacyApp}, "describe", "pod", productpage)
		answers(t, m, "a", []string{"in the mesh", "9080"}, "describe", "service", productpage)
		if out, code := ask(t, m, "a", "describe", "pod", "default/none"); code != 1 || !strings.Contains(out, productpage) {
			t.Errorf("exit code %d:\n%s", code, out)
		}
	})
	t.Run("what is foretold happens", func(t *testing.T) {
		for from, want := range map[string]struct {
			code int
			says string
		}{nginx: {0, "mTLS"}, legacyApp: {1, "refused"}} {
			out, code := ask(t, m, "b", "can", from, productpage+":9080", "--try")
			if code != want.code || !strings.Contains(out, want.says) || !strings.Contains(out, ": as foretold") {
				t.Errorf("%s: exit code %d:\n%s", from, code, out)
			}
		}
	})
	t.Run("certificates and a handshake", func(t *testing.T) {
		answers(t, m, "a", []string{"spiffe://cluster.local/ns/default/sa/productpage", productpage}, "certs")
		if out, code := ask(t, m, "b", "certs", "verify", nginx, productpage); code != 0 || !strings.Contains(out, "both sides accept each other") {
			t.Errorf("exit code %d:\n%s", code, out)
		}
		if out, code := ask(t, m, "b", "certs", "verify", nginx, "audit/auditor"); code != 1 || !strings.Contains(out, "nobody listens") {
			t.Errorf("exit code %d:\n%s", code, out)
		}
	})
	t.Run("bugreport has no secrets", func(t *testing.T) { bugreport(t, m) })
	t.Run("node page", func(t *testing.T) {
		nodepage.Check(t, nodepage.StartBrowser(t, nodepage.On(m.Node("a"))), nodepage.Page{
			URL: m.PageURL(), Name: "demo", Says: []string{"productpage", "STRICT", "plaintext to a STRICT port"},
			Change: func() {
				if err := m.Apply(t.Context()); err != nil {
					t.Error(err)
				}
			}, Then: "PERMISSIVE",
		})
	})
}

func bugreport(t *testing.T, m *demo.Mesh) {
	cmd := exec.CommandContext(t.Context(), m.Binary(), "bugreport", "--local", "--admin-socket", m.AdminSocket("a"), "--file", "-")
	report, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	unzipped, err := gzip.NewReader(bytes.NewReader(report))
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	for archive := tar.NewReader(unzipped); ; files++ {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{"PRIVATE KEY", "eyJ"} {
			if bytes.Contains(text, []byte(secret)) {
				t.Errorf("%s: has %q in it", header.Name, secret)
			}
		}
	}
	if files < 3 {
		t.Errorf("%d files", files)
	}
}
