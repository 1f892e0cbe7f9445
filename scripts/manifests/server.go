package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// server is an etcd and an API server on the loopback address, with nothing behind them: no controller, no node.
type server struct {
	kubectl  kubectl
	url      string
	token    string // an administrator's
	dir      string
	programs []*exec.Cmd
	logs     []*os.File
}

// startServer starts both and waits until requests are answered.
func startServer(ctx context.Context, t tools) (_ *server, err error) {
	if t.apiserver == "" {
		return nil, errors.New("no API server: unset KUBECTL, so that the end-to-end tests' programs are used, or give -cluster")
	}
	dir, err := os.MkdirTemp("", "culvert-manifests-")
	if err != nil {
		return nil, fmt.Errorf("folder for the API server: %w", err)
	}
	s := &server{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	if err := s.writeKeys(); err != nil {
		return nil, err
	}
	s.url = "https://127.0.0.1:" + ports[2]
	etcd, peer := "http://127.0.0.1:"+ports[0], "http://127.0.0.1:"+ports[1]
	if err := s.start(ctx, t.etcd, "--data-dir", filepath.Join(dir, "etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls", etcd, "--advertise-client-urls", etcd,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer); err != nil {
		return nil, err
	}
	key := filepath.Join(dir, "accounts.key")
	if err := s.start(ctx, t.apiserver, "--etcd-servers", etcd, "--bind-address=127.0.0.1", "--secure-port", ports[2],
		"--cert-dir", filepath.Join(dir, "certs"), "--token-auth-file", filepath.Join(dir, "tokens.csv"), "--authorization-mode=Node,RBAC",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file", key, "--service-account-signing-key-file", key,
		"--service-cluster-ip-range=10.96.0.0/16", "--allow-privileged=true",
		// No controller makes the accounts named default.
		"--disable-admission-plugins=ServiceAccount"); err != nil {
		return nil, err
	}
	s.kubectl = kubectl{path: t.kubectl, kubeconfig: filepath.Join(dir, "kubeconfig")}
	if err := s.writeKubeconfig(); err != nil {
		return nil, err
	}
	return s, s.wait(ctx)
}

func freePorts(n int) ([]string, error) {
	var ports []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("free port: %w", err)
		}
		defer l.Close() // all at once, so that no port is given twice
		_, port, _ := net.SplitHostPort(l.Addr().String())
		ports = append(ports, port)
	}
	return ports, nil
}

// writeKeys makes the key of service accounts' tokens, and an administrator's token.
func (s *server) writeKeys() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return fmt.Errorf("key of tokens: %w", err)
	}
	block := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}
	if err := os.WriteFile(filepath.Join(s.dir, "accounts.key"), pem.EncodeToMemory(block), 0o600); err != nil {
		return fmt.Errorf("key of tokens: %w", err)
	}
	random := make([]byte, 16)
	if _, err := rand.Read(random); err != nil {
		return fmt.Errorf("token: %w", err)
	}
	s.token = hex.EncodeToString(random)
	line := s.token + ",admin,admin,system:masters\n"
	if err := os.WriteFile(filepath.Join(s.dir, "tokens.csv"), []byte(line), 0o600); err != nil {
		return fmt.Errorf("token: %w", err)
	}
	return nil
}

func (s *server) writeKubeconfig() error {
	// The certificate is one that the API server makes for itself, on the loopback address: it is not checked.
	config := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: own
contexts: [{name: own, context: {cluster: own, user: admin}}]
clusters: [{name: own, cluster: {server: %q, insecure-skip-tls-verify: true}}]
users: [{name: admin, user: {token: %q}}]
`, s.url, s.token)
	if err := os.WriteFile(s.kubectl.kubeconfig, []byte(config), 0o600); err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	return nil
}

func (s *server) start(ctx context.Context, path string, args ...string) error {
	log, err := os.Create(filepath.Join(s.dir, filepath.Base(path)+".log"))
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	s.logs = append(s.logs, log)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	// If this process dies, so do they.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", filepath.Base(path), err)
	}
	s.programs = append(s.programs, cmd)
	return nil
}

// wait returns when the API server is ready and has the priority classes, which it makes last.
func (s *server) wait(ctx context.Context) error {
	var err error
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); {
		if _, err = s.kubectl.run(ctx, "", "get", "--raw=/readyz"); err == nil {
			if _, err = s.kubectl.run(ctx, "", "get", "priorityclass", "system-node-critical"); err == nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("API server: %w", ctx.Err())
		case <-time.After(300 * time.Millisecond):
		}
	}
	log, _ := os.ReadFile(filepath.Join(s.dir, "kube-apiserver.log"))
	return fmt.Errorf("API server does not become ready: %w\n%s", err, log[max(0, len(log)-2000):])
}

// stop ends what was started, last first, and removes its folder.
func (s *server) stop() error {
	for i := len(s.programs) - 1; i >= 0; i-- {
		p := s.programs[i]
		_ = p.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(20*time.Second, func() { _ = p.Process.Kill() })
		_ = p.Wait()
		timer.Stop()
	}
	for _, log := range s.logs {
		log.Close()
	}
	return os.RemoveAll(s.dir)
}
