package kube_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/identity/istio"
)

func domain() spiffeid.TrustDomain {
	return spiffeid.RequireTrustDomainFromString("cluster.local")
}

func id(namespace, account string) spiffeid.ID {
	return spiffeid.RequireFromSegments(domain(), "ns", namespace, "sa", account)
}

// buffer is a log that is read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// client is the agent's, with a token.
func client(t testing.TB, address string, roots []byte, token string) *istio.Client {
	t.Helper()
	folder := t.TempDir()
	write(t, filepath.Join(folder, "token"), []byte(token+"\n"))
	write(t, filepath.Join(folder, "roots"), roots)
	return agentOf(t, address, folder)
}

// agentOf is the agent's client, whose token and roots are in the folder.
func agentOf(t testing.TB, address, folder string) *istio.Client {
	t.Helper()
	c, err := istio.New(istio.Options{
		Address: address, TokenFile: filepath.Join(folder, "token"), RootsFile: filepath.Join(folder, "roots"),
		ClusterID: "Kubernetes", TrustDomain: domain(), ServerName: "culvert-ca.culvert-system.svc",
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func write(t testing.TB, file string, text []byte) {
	t.Helper()
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func eventually(t testing.TB, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatal("still not so after 20 s")
}

// refusedWith checks that the caller learns no more than that it was refused, and that the log says why.
func refusedWith(t *testing.T, err error, outside string, log fmt.Stringer, inside string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), outside) {
		t.Fatalf("error %v, want %q in it", err, outside)
	}
	if strings.Contains(err.Error(), inside) {
		t.Errorf("error %q tells outside that %q", err, inside)
	}
	if !strings.Contains(log.String(), inside) {
		t.Errorf("log does not say %q:\n%s", inside, log)
	}
}
