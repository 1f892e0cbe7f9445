package istiod

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

const (
	startTimeout = 2 * time.Minute
	clusterID    = "Kubernetes" // istiod's default
	serverName   = "istiod.istio-system.svc"
	audience     = "istio-ca"
)

// istiod is a running pilot-discovery.
type istiod struct {
	t            *testing.T
	folder       string // in which it looks for certificates, and finds those that it is given
	kubeconfig   string
	secure, http string // addresses
	cmd          *exec.Cmd
	ended        chan struct{}
	log          *buffer
}

// startIstiod runs istiod as that user until the test ends. Without files in cacerts, the folder of an operator's own
// CA, it makes itself a root and keeps it in a Secret.
func startIstiod(t *testing.T, user *rest.Config, cacerts map[string][]byte) *istiod {
	t.Helper()
	i := &istiod{t: t, folder: t.TempDir(), secure: freeAddress(t), http: freeAddress(t), log: &buffer{}}
	i.plug(cacerts)
	i.kubeconfig = filepath.Join(i.folder, "kubeconfig")
	if err := clientcmd.WriteToFile(api.Config{
		Clusters:  map[string]*api.Cluster{"c": {Server: user.Host, CertificateAuthority: user.CAFile}},
		AuthInfos: map[string]*api.AuthInfo{"u": {Token: user.BearerToken}},
		Contexts:  map[string]*api.Context{"x": {Cluster: "c", AuthInfo: "u"}}, CurrentContext: "x",
	}, i.kubeconfig); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		i.stop()
		if t.Failed() {
			t.Logf("log of istiod:\n%s", i.log)
		}
	})
	i.start()
	return i
}

// plug writes the files of an operator's own CA; istiod, if it runs, takes them up by itself.
func (i *istiod) plug(cacerts map[string][]byte) {
	i.t.Helper()
	folder := filepath.Join(i.folder, "etc", "cacerts")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		i.t.Fatal(err)
	}
	for name, text := range cacerts {
		write(i.t, folder, name, text)
	}
}

// start runs the program. It does not outlive the test, however that ends: the kernel kills it with the thread that
// started it, which is why that thread waits for it.
func (i *istiod) start() {
	i.t.Helper()
	program, err := built()
	if err != nil {
		i.t.Fatal(err)
	}
	i.cmd = exec.Command(program, "discovery", "--kubeconfig", i.kubeconfig, "--clusterID", clusterID,
		"--secureGRPCAddr", i.secure, "--httpAddr", i.http,
		// Nothing listens but these two: gRPC without TLS and the metrics are served by the second, webhooks by none,
		// and introspection by a port of loopback that the kernel chooses.
		"--grpcAddr=", "--monitoringAddr=", "--httpsAddr=", "--ctrlz_address=127.0.0.1", "--ctrlz_port=0",
		"--profile=false", "--shutdownDuration=1s", "--log_output_level=default:info,serverca:debug")
	i.cmd.Dir = i.folder
	i.cmd.Env = environment()
	i.cmd.Stdout, i.cmd.Stderr = i.log, i.log
	i.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	i.ended = make(chan struct{})
	started := make(chan error)
	go func() {
		defer close(i.ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := i.cmd.Start()
		started <- err
		if err == nil {
			_ = i.cmd.Wait() // how it ended shows in its log
		}
	}()
	if err := <-started; err != nil {
		i.t.Fatal(err)
	}
	i.ready()
}

// environment is all that istiod gets to know beside its flags.
func environment() []string {
	return []string{
		"PATH=/nonexistent", "HOME=/nonexistent",
		"POD_NAME=istiod-0", "POD_NAMESPACE=" + istioSystem,
		"CA_TRUSTED_NODE_ACCOUNTS=" + system + "/" + agentAccount,
		"TOKEN_AUDIENCES=" + audience,
		// It is alone, and has no CRDs, no pods to inject into and no webhooks.
		"ENABLE_LEADER_ELECTION=false", "INJECT_ENABLED=false",
		"INJECTION_WEBHOOK_CONFIG_NAME=", "VALIDATION_WEBHOOK_CONFIG_NAME=",
		"PILOT_ENABLE_GATEWAY_API=false", "PILOT_ENABLE_IP_AUTOALLOCATE=false",
		"PILOT_ENABLE_WORKLOAD_ENTRY_AUTOREGISTRATION=false",
	}
}

func (i *istiod) ready() {
	i.t.Helper()
	ctx, cancel := context.WithTimeout(i.t.Context(), startTimeout)
	defer cancel()
	var err error
	for ctx.Err() == nil {
		select {
		case <-i.ended:
			i.t.Fatal("istiod ended")
		case <-time.After(100 * time.Millisecond):
		}
		if err = i.ask(ctx); err == nil {
			return
		}
	}
	i.t.Fatalf("istiod is not ready: %v", err)
}

// ask wants the readiness probe to be content, and the CA's port, which istiod opens after that, to be open.
func (i *istiod) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+i.http+"/ready", nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("/ready: %s", answer.Status)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", i.secure)
	if err != nil {
		return err
	}
	return conn.Close()
}

// stop ends istiod as the kubelet does when it is in a hurry.
func (i *istiod) stop() {
	if i.cmd == nil || i.cmd.Process == nil {
		return
	}
	select {
	case <-i.ended:
		return
	default:
	}
	_ = i.cmd.Process.Signal(os.Kill) // it may have ended by itself
	<-i.ended
}

// freeAddress is one of loopback that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// buffer is a log that is read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String is what was written so far.
func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
