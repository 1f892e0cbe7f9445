package spire

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/e2e/kind/artifact"
)

const (
	domainName = "cluster.local"
	culvert    = "spiffe://cluster.local/ns/culvert-system/sa/culvert-agent"
	soon       = time.Minute // for what must happen
)

func build(t *testing.T) string {
	t.Helper()
	store, err := artifact.Open("", slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := Build(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// process is a program that can be stopped and run again.
type process struct {
	t    *testing.T
	path string
	args []string
	log  string
	stop func()
}

// run starts the program, with more arguments than the usual ones, if any.
func (p *process) run(more ...string) {
	p.t.Helper()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	cmd := exec.Command(p.path, append(append([]string{}, p.args...), more...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(errors.Join(err, log.Close()))
	}
	var ended sync.WaitGroup
	ended.Go(func() { _ = cmd.Wait() })
	p.stop = sync.OnceFunc(func() {
		kill := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		_ = cmd.Process.Signal(syscall.SIGTERM)
		ended.Wait()
		_ = log.Close()
	})
}

// start prepares a program with a configuration, and its end.
func start(t *testing.T, path, folder, config string) *process {
	t.Helper()
	name := filepath.Base(path)
	file := filepath.Join(folder, name+".conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, path: path, args: []string{"run", "-config", file}, log: filepath.Join(folder, name+".log"), stop: func() {}}
	t.Cleanup(func() {
		p.stop()
		if text, err := os.ReadFile(p.log); t.Failed() && err == nil {
			lines := strings.Split(string(text), "\n")
			t.Logf("the last of %s:\n%s", name, strings.Join(lines[max(0, len(lines)-60):], "\n"))
		}
	})
	return p
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func serverConfig(folder string, port int) string {
	return fmt.Sprintf(`
server {
	bind_address = "127.0.0.1"
	bind_port = "%d"
	socket_path = "%s/server.sock"
	trust_domain = "%s"
	data_dir = "%s"
	log_level = "INFO"
}
plugins {
	DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "%s/entries.sqlite3" } }
	NodeAttestor "join_token" { plugin_data {} }
	KeyManager "disk" { plugin_data { keys_path = "%s/server-keys.json" } }
}
`, port, folder, domainName, folder, folder, folder)
}

// agentConfig has the test itself be the broker and the delegate, which the agent tells by its user.
func agentConfig(folder string, port, kubelet int, broker bool) string {
	brokers := fmt.Sprintf(`broker {
			socket_path = "%s/broker/broker.sock"
			brokers = [{ id = "%s", allowed_reference_types = [
				{ type_url = "type.googleapis.com/spiffe.broker.KubernetesObjectReference" } ] }]
		}`, folder, culvert)
	if !broker {
		brokers = ""
	}
	return fmt.Sprintf(`
agent {
	data_dir = "%[1]s"
	log_level = "INFO"
	server_address = "127.0.0.1"
	server_port = "%[2]d"
	socket_path = "%[1]s/workload/api.sock"
	admin_socket_path = "%[1]s/admin/admin.sock"
	trust_domain = "%[3]s"
	trust_bundle_path = "%[1]s/bootstrap.pem"
	authorized_delegates = ["%[4]s"]
	experimental {
		sync_interval = "500ms"
		%[6]s
	}
}
plugins {
	NodeAttestor "join_token" { plugin_data {} }
	KeyManager "disk" { plugin_data { directory = "%[1]s" } }
	WorkloadAttestor "unix" { plugin_data {} }
	WorkloadAttestor "k8s" { plugin_data {
		kubelet_read_only_port = %[5]d
		node_name = "127.0.0.1"
		experimental { broker {
			access_policy = "permissive"
			brokers = [{ id = "%[4]s" }]
		} }
	} }
}
`, folder, port, domainName, culvert, kubelet, brokers)
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(soon); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("still not: " + what)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
