package admin

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/agent/identity/ca/catest"
)

// node is a fake agent.
type node struct {
	Node
	certificates func(context.Context) (*Certificates, error)
	handshake    func(ctx context.Context, from, to string) (*Handshake, error)
}

func (n node) Certificates(ctx context.Context) (*Certificates, error) { return n.certificates(ctx) }

func (n node) Handshake(ctx context.Context, from, to string) (*Handshake, error) {
	return n.handshake(ctx, from, to)
}

// serve runs a server until the returned function is called, or the test ends.
func serve(t *testing.T, path string, n Node, version string) (stop func()) {
	t.Helper()
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, n, version, slog.New(slog.DiscardHandler)) }()
	stopped := false
	stop = func() {
		cancel()
		if stopped {
			return
		}
		stopped = true
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func socket(t *testing.T) string { return filepath.Join(t.TempDir(), "admin.sock") }

func TestCallsReachTheNodeAndComeBack(t *testing.T) {
	path := socket(t)
	root := catest.Root(t, "root")
	renewal := time.Now().Add(time.Hour).UTC()
	serve(t, path, node{
		certificates: func(context.Context) (*Certificates, error) {
			return &Certificates{Node: "n1", SVIDs: []SVID{{Identity: "spiffe://a/ns/b/sa/c", Chain: NewChain(nil), NextRenewal: &renewal}},
				Bundles: []Bundle{{"a", []Certificate{NewCertificate(root.Cert)}}}}, nil
		},
		handshake: func(_ context.Context, from, to string) (*Handshake, error) {
			return &Handshake{From: from, To: to, Stage: StageDone, ConnectTime: time.Millisecond}, nil
		},
	}, "v1")
	c := NewClient(path, "v1")
	got, err := c.Certificates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.Node != "n1" || got.Version != "v1" || time.Since(got.Time) > time.Minute || !got.SVIDs[0].NextRenewal.Equal(renewal) {
		t.Errorf("certificates %+v", got)
	}
	certs, err := ParseChain(got.Bundles[0].Roots)
	if err != nil || !certs[0].Equal(root.Cert) || len(got.Bundles[0].Roots[0].SHA256) != 64 {
		t.Errorf("root %+v, %v", got.Bundles[0].Roots, err)
	}
	h, err := c.Handshake(t.Context(), "x/a", "x/b")
	if err != nil || h.From != "x/a" || h.To != "x/b" || !h.OK() || h.ConnectTime != time.Millisecond {
		t.Errorf("handshake %+v, %v", h, err)
	}
	if _, err := c.Handshake(t.Context(), "x/a", ""); err == nil || !strings.Contains(err.Error(), "from and to are missing") {
		t.Errorf("handshake with nobody: %v", err)
	}
}

func TestErrorsOfTheNodeKeepTheirMeaning(t *testing.T) {
	path := socket(t)
	var answer error
	serve(t, path, node{handshake: func(context.Context, string, string) (*Handshake, error) { return nil, answer }}, "v2")
	tests := map[string]struct {
		answer  error
		unknown bool
		want    string
	}{
		"unknown workload": {fmt.Errorf("x/a: %w on this node", ErrUnknownWorkload), true, "x/a: workload is not known on this node"},
		"any other":        {errors.New("no tunnel is connected"), false, "agent (the agent is Culvert v2, this is v1): no tunnel is connected"},
		"too slow":         {context.DeadlineExceeded, false, "deadline exceeded"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			answer = tt.answer
			_, err := NewClient(path, "v1").Handshake(t.Context(), "x/a", "x/b")
			if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, ErrUnknownWorkload) != tt.unknown {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

func TestACallThatTheAgentDoesNotKnowNamesBothVersions(t *testing.T) {
	path := socket(t)
	serve(t, path, node{}, "v1")
	err := NewClient(path, "v9").call(t.Context(), http.MethodGet, "/v1/none", nil, nil)
	if err == nil || !strings.Contains(err.Error(), "the agent is Culvert v1, this is v9") || !strings.Contains(err.Error(), "no such call") {
		t.Errorf("error %v", err)
	}
	err = NewClient(path, "v9").call(t.Context(), http.MethodPost, pathHandshake, map[string]string{"from": "a", "to": "b", "port": "80"}, nil)
	if err == nil || !strings.Contains(err.Error(), `unknown field "port"`) {
		t.Errorf("error %v", err)
	}
}

func TestRequestsAreBounded(t *testing.T) {
	path := socket(t)
	serve(t, path, node{}, "v1")
	err := NewClient(path, "v1").call(t.Context(), http.MethodPost, pathHandshake, handshakeRequest{From: strings.Repeat("x", maxRequest)}, nil)
	if err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("error %v", err)
	}
}

func TestTenThousandIdentitiesPass(t *testing.T) {
	path := socket(t)
	root := catest.Root(t, "root")
	leaf := root.Leaf(t, &catest.Key(t).PublicKey)
	serve(t, path, node{certificates: func(context.Context) (*Certificates, error) {
		all := &Certificates{}
		for i := range 10_000 {
			all.SVIDs = append(all.SVIDs, SVID{Identity: fmt.Sprintf("spiffe://a/ns/n/sa/%d", i), Workloads: []string{"n/p"},
				Chain: NewChain([]*x509.Certificate{leaf, root.Cert})})
		}
		return all, nil
	}}, "v1")
	got, err := NewClient(path, "v1").Certificates(t.Context())
	if err != nil || len(got.SVIDs) != 10_000 {
		t.Fatalf("%d identities, %v", len(got.SVIDs), err)
	}
}

func TestWhoDoesNotAnswerIsNamed(t *testing.T) {
	dir := t.TempDir()
	silent, dead, rude := filepath.Join(dir, "silent"), filepath.Join(dir, "dead"), filepath.Join(dir, "rude")
	listen := func(path string) *net.UnixListener {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	listen(silent)
	l := listen(dead)
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	r := listen(rude)
	go func() {
		for {
			c, err := r.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	tests := map[string]struct {
		path string
		is   error
		want string
	}{
		"no socket":  {filepath.Join(dir, "none"), fs.ErrNotExist, "there is no agent's socket on this machine"},
		"left over":  {dead, syscall.ECONNREFUSED, "is not running, only its socket is left"},
		"no answer":  {silent, context.DeadlineExceeded, "does not answer"},
		"closes":     {rude, nil, "gave no answer"},
		"not a name": {dir + "/" + strings.Repeat("x", 200), nil, "agent at "},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			_, err := NewClient(tt.path, "v1").Certificates(ctx)
			if err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

func TestTheEndWaitsForCallsAndEndsThem(t *testing.T) {
	path := socket(t)
	started, ended := make(chan struct{}), make(chan struct{})
	stop := serve(t, path, node{certificates: func(ctx context.Context) (*Certificates, error) {
		close(started)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	}}, "v1")
	failed := make(chan error, 1)
	go func() {
		_, err := NewClient(path, "v1").Certificates(context.Background())
		failed <- err
	}()
	<-started
	stop()
	select {
	case <-ended:
	default:
		t.Error("Serve returned before its call")
	}
	if err := <-failed; err == nil {
		t.Error("an answer after the end")
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("socket after the end: %v", err)
	}
}

func TestASuccessorsSocketStays(t *testing.T) {
	path := socket(t)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "file of another kind") {
		t.Errorf("in the place of a file: %v", err)
	}
	_ = os.Remove(path)
	first, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("successor's socket: %v, %v", info, err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("socket after the end: %v", err)
	}
}

func TestMoreConnectionsWait(t *testing.T) {
	path := socket(t)
	release := make(chan struct{})
	serve(t, path, node{certificates: func(context.Context) (*Certificates, error) {
		<-release
		return &Certificates{}, nil
	}}, "v1")
	const calls = 3 * maxConnections
	failed := make(chan error, calls)
	for range calls {
		go func() {
			_, err := NewClient(path, "v1").Certificates(context.Background())
			failed <- err
		}()
	}
	close(release)
	for range calls {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}

// TestOtherUsers runs itself as another user, who is kept off by the socket's mode and, without that, by its own user.
func TestOtherUsers(t *testing.T) {
	if path := os.Getenv("CULVERT_TEST_ADMIN"); path != "" {
		_, err := NewClient(path, "v1").Certificates(t.Context())
		fmt.Println(err)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	dir, err := os.MkdirTemp("", "culvert-admin-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "admin.sock")
	serve(t, path, node{certificates: func(context.Context) (*Certificates, error) {
		t.Error("another user got through")
		return &Certificates{}, nil
	}}, "v1")
	// The test's binary is where that user cannot go.
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	copied, err := os.OpenFile(filepath.Join(dir, "test"), os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(copied, self)
	if err := errors.Join(err, copied.Close()); err != nil {
		t.Fatal(err)
	}
	ask := func() string {
		cmd := exec.CommandContext(t.Context(), copied.Name(), "-test.run", "^TestOtherUsers$")
		cmd.Env, cmd.Dir = append(os.Environ(), "CULVERT_TEST_ADMIN="+path), "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(bytes.TrimSpace(out))
	}
	if out := ask(); !strings.Contains(out, "root alone may ask") {
		t.Errorf("mode of the socket: %s", out)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if out := ask(); !strings.Contains(out, "gave no answer") {
		t.Errorf("peer's user: %s", out)
	}
}
