// Package apitest runs a real kube-apiserver with its etcd on loopback, for tests.
//
// It needs the two binaries in the folder that CULVERT_KUBE_BINARIES names; without it, tests skip. There is no
// controller: nobody makes EndpointSlices or removes the objects of a deleted namespace.
package apitest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// BinariesEnv names the folder with etcd and kube-apiserver.
const BinariesEnv = "CULVERT_KUBE_BINARIES"

const (
	startTimeout = 2 * time.Minute
	stopTimeout  = 10 * time.Second
	adminToken   = "apitest-admin"
)

// Server is a running API server. Its user by default is a cluster administrator.
type Server struct {
	tb        testing.TB
	folder    string
	binaries  string
	etcdPort  int
	port      int
	tokens    map[string]string // user by token
	etcd, api *process
}

// process is a program that this package started.
type process struct {
	cmd    *exec.Cmd
	output *tail
	ended  chan struct{}
}

// Start runs an API server until the test ends. Users are tokens and the names that they stand for; what these may
// do is up to RBAC.
func Start(tb testing.TB, users map[string]string) *Server {
	tb.Helper()
	binaries := os.Getenv(BinariesEnv)
	if binaries == "" {
		tb.Skip(BinariesEnv + " names no folder with etcd and kube-apiserver")
	}
	s := &Server{tb: tb, folder: tb.TempDir(), binaries: binaries, tokens: users}
	tb.Cleanup(s.stop)
	ports := freePorts(tb, 3)
	s.etcdPort, s.port = ports[0], ports[2]
	s.etcd = s.run("etcd",
		"--data-dir", filepath.Join(s.folder, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls", s.etcdURL(), "--advertise-client-urls", s.etcdURL(),
		"--listen-peer-urls", "http://127.0.0.1:"+strconv.Itoa(ports[1]), "--log-level", "warn")
	s.writeFiles()
	s.StartAPI()
	return s
}

func (s *Server) etcdURL() string { return "http://127.0.0.1:" + strconv.Itoa(s.etcdPort) }

// StartAPI starts the API server again after StopAPI, at the same address, and waits until it is ready.
func (s *Server) StartAPI() {
	s.tb.Helper()
	s.api = s.run("kube-apiserver",
		"--etcd-servers", s.etcdURL(), "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1",
		"--secure-port", strconv.Itoa(s.port), "--cert-dir", s.folder,
		"--authorization-mode", "RBAC", "--anonymous-auth=false",
		"--token-auth-file", filepath.Join(s.folder, "tokens.csv"),
		"--service-account-issuer", "https://kubernetes.default.svc",
		"--service-account-key-file", filepath.Join(s.folder, "sa.key"),
		"--service-account-signing-key-file", filepath.Join(s.folder, "sa.key"),
		"--service-cluster-ip-range", "10.96.0.0/16,fd00:96::/112",
		"--disable-admission-plugins", "ServiceAccount", "--allow-privileged=true", "--endpoint-reconciler-type", "none",
		"--max-requests-inflight", "2000", "--max-mutating-requests-inflight", "1000")
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	var err error
	for ctx.Err() == nil && s.api.running() {
		if err = s.ready(ctx); err == nil {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
	s.tb.Fatalf("the API server is not ready: %v\netcd:\n%s\nkube-apiserver:\n%s", err, s.etcd.output, s.api.output)
}

// StopAPI ends the API server at once; etcd, and all that is stored, stays.
func (s *Server) StopAPI() { s.api.stop(syscall.SIGKILL) }

// Pause stops the API server from answering without closing anything, until Resume.
func (s *Server) Pause() { s.api.signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (s *Server) Resume() { s.api.signal(syscall.SIGCONT) }

// Config is for the user with that token; "" is the administrator.
func (s *Server) Config(token string) *rest.Config {
	if token == "" {
		token = adminToken
	}
	return &rest.Config{
		Host: "https://127.0.0.1:" + strconv.Itoa(s.port), BearerToken: token,
		TLSClientConfig: rest.TLSClientConfig{CAFile: filepath.Join(s.folder, "apiserver.crt")},
		QPS:             1000, Burst: 2000,
	}
}

// Client is the administrator's.
func (s *Server) Client() *kubernetes.Clientset {
	s.tb.Helper()
	c, err := kubernetes.NewForConfig(s.Config(""))
	if err != nil {
		s.tb.Fatal(err)
	}
	return c
}

func (s *Server) ready(ctx context.Context) error {
	c, err := kubernetes.NewForConfig(s.Config(""))
	if err != nil {
		return err // the certificate is not written yet
	}
	defer c.RESTClient().(*rest.RESTClient).Client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	status := 0
	if err := c.RESTClient().Get().AbsPath("/readyz").Do(ctx).StatusCode(&status).Error(); err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("/readyz answers %d", status)
	}
	_, err = c.CoreV1().Namespaces().Get(ctx, metav1.NamespaceDefault, metav1.GetOptions{})
	return err
}

func (s *Server) writeFiles() {
	s.tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.tb.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		s.tb.Fatal(err)
	}
	tokens := adminToken + ",admin,admin,\"system:masters\"\n"
	for token, user := range s.tokens {
		tokens += token + "," + user + "," + user + "\n"
	}
	for name, data := range map[string][]byte{
		"sa.key":     pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
		"tokens.csv": []byte(tokens),
	} {
		if err := os.WriteFile(filepath.Join(s.folder, name), data, 0o600); err != nil {
			s.tb.Fatal(err)
		}
	}
}

// run starts a program. It does not outlive the test, however that ends: the kernel kills it with the thread that
// started it, which is why that thread waits for it.
func (s *Server) run(name string, args ...string) *process {
	s.tb.Helper()
	p := &process{output: &tail{}, ended: make(chan struct{})}
	p.cmd = exec.Command(filepath.Join(s.binaries, name), args...)
	p.cmd.Args[0] = name // one binary may have several names
	p.cmd.Dir = s.folder
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		defer close(p.ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // how it ended shows in its output
		}
	}()
	if err := <-started; err != nil {
		s.tb.Fatalf("%s: %v", name, err)
	}
	return p
}

func (s *Server) stop() {
	for _, p := range []*process{s.api, s.etcd} {
		if p != nil {
			p.stop(syscall.SIGKILL)
		}
	}
}

func (p *process) running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

func (p *process) signal(sig syscall.Signal) {
	if p.running() {
		_ = p.cmd.Process.Signal(sig)
	}
}

func (p *process) stop(sig syscall.Signal) {
	p.signal(sig)
	select {
	case <-p.ended:
	case <-time.After(stopTimeout):
	}
}

// tail keeps the end of what a program writes.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (t *tail) Write(b []byte) (int, error) {
	const most = 16 << 10
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(b)
	if over := t.buf.Len() - most; over > 0 {
		t.buf.Next(over)
	}
	return len(b), nil
}

// String is what was kept.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}

// freePorts returns ports of loopback that nobody listens on.
func freePorts(tb testing.TB, n int) []int {
	tb.Helper()
	var ports []int
	var listeners []net.Listener
	var err error
	for range n {
		l, listenErr := net.Listen("tcp", "127.0.0.1:0")
		if listenErr != nil {
			err = errors.Join(err, listenErr)
			break
		}
		listeners = append(listeners, l)
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	for _, l := range listeners {
		err = errors.Join(err, l.Close())
	}
	if err != nil {
		tb.Fatalf("free ports: %v", err)
	}
	return ports
}
