package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/culvert-mesh/culvert/agent/enroll/cni"
)

// firstPlugin is the name under which this test's binary plays the plugin that makes the pod's network.
const firstPlugin = "culvert-test-first"

const podAddress = "10.77.1.2"

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == firstPlugin {
		first()
		return
	}
	os.Exit(m.Run())
}

// first gives the pod an address on paper; the namespace has it already.
func first() {
	nothing := func(*skel.CmdArgs) error { return nil }
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add: func(args *skel.CmdArgs) error {
			var c types.PluginConf
			if err := json.Unmarshal(args.StdinData, &c); err != nil {
				return err
			}
			result := fmt.Sprintf(`{"cniVersion":"1.0.0","interfaces":[{"name":"host0"},{"name":"eth0","sandbox":%q}],
				"ips":[{"interface":1,"address":"%s/32"},{"interface":0,"address":"10.77.1.1/32"}],"dns":{"nameservers":["10.96.0.10"]}}`, args.Netns, podAddress)
			r, err := types100.NewResult([]byte(result))
			if err != nil {
				return err
			}
			return types.PrintResult(r, c.CNIVersion)
		},
		Check: nothing, Del: nothing, GC: nothing, Status: nothing,
	}, version.All, "test")
}

// agent is a handler that answers as its fields say, and remembers what it was asked.
type agent struct {
	mu     sync.Mutex
	asked  []cni.Request
	netns  []os.FileInfo
	reason string // why pods are not to be enrolled
	err    error
}

func (a *agent) note(r *cni.Request, netns *os.File) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = append(a.asked, *r)
	if netns != nil {
		info, err := netns.Stat()
		if err != nil {
			return err
		}
		a.netns = append(a.netns, info)
	}
	return a.err
}

func (a *agent) set(reason string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reason, a.err = reason, err
}

// all returns what was asked so far.
func (a *agent) all() []cni.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.asked)
}

func (a *agent) last() (cni.Request, int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.asked) == 0 {
		return cni.Request{}, 0
	}
	return a.asked[len(a.asked)-1], len(a.asked)
}

func (a *agent) Add(_ context.Context, r *cni.Request, netns *os.File) (cni.Response, error) {
	err := a.note(r, netns)
	a.mu.Lock()
	defer a.mu.Unlock()
	return cni.Response{Enrolled: a.reason == "", Reason: a.reason}, err
}

func (a *agent) Check(_ context.Context, r *cni.Request, netns *os.File) error {
	return a.note(r, netns)
}
func (a *agent) Delete(_ context.Context, r *cni.Request) error { return a.note(r, nil) }
func (a *agent) GC(_ context.Context, r *cni.Request) error     { return a.note(r, nil) }
func (a *agent) Status(context.Context) error {
	return a.note(&cni.Request{Command: cni.Status}, nil)
}

// host is what a runtime has: plugins, a cache, and the namespace of a pod.
type host struct {
	t      *testing.T
	bin    string
	socket string
	netns  string
	cni    *libcni.CNIConfig
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newHost(t *testing.T) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: makes a network namespace")
	}
	t.Setenv("GORACE", "atexit_sleep_ms=0") // of this binary as a plugin
	root := t.TempDir()
	h := &host{t: t, bin: filepath.Join(root, "bin"), socket: filepath.Join(root, "cni.sock")}
	must(t, os.Mkdir(h.bin, 0o755))
	buildPlugin(t, filepath.Join(h.bin, "culvert-cni"))
	self, err := os.Executable()
	must(t, err)
	must(t, os.Symlink(self, filepath.Join(h.bin, firstPlugin)))
	h.netns = netns(t, "culvert-test-cni")
	h.cni = libcni.NewCNIConfigWithCacheDir([]string{h.bin, "/usr/lib/cni", "/opt/cni/bin"}, filepath.Join(root, "cache"), nil)
	return h
}

// buildPlugin builds the plugin as it is shipped.
func buildPlugin(t *testing.T, path string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
}

func netns(t *testing.T, name string) string {
	t.Helper()
	_ = exec.Command("ip", "netns", "del", name).Run()
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Fatalf("ip netns add: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	return filepath.Join("/run/netns", name)
}

// serve starts an agent; stop ends it, and so does the end of the test.
func (h *host) serve(a *agent) (stop func()) {
	h.t.Helper()
	l, err := cni.Listen(h.socket)
	must(h.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- cni.Serve(ctx, l, a, slog.New(slog.DiscardHandler)) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := errors.Join(<-done, l.Close()); err != nil {
				h.t.Errorf("agent: %v", err)
			}
		})
	}
	h.t.Cleanup(stop)
	return stop
}

// list is the chain that pods get; options are further fields of the plugin's entry.
func (h *host) list(cniVersion, options string) *libcni.NetworkConfigList {
	h.t.Helper()
	l, err := libcni.NetworkConfFromBytes(fmt.Appendf(nil, `{"cniVersion":%q,"name":"net","plugins":[{"type":%q},
		{"type":"culvert-cni","socket":%q%s}]}`, cniVersion, firstPlugin, h.socket, options))
	must(h.t, err)
	return l
}

// runtime is what kubelet's runtimes tell plugins.
func (h *host) runtime(args ...string) *libcni.RuntimeConf {
	r := &libcni.RuntimeConf{ContainerID: "sandbox1", NetNS: h.netns, IfName: "eth0"}
	if args == nil {
		args = []string{"IgnoreUnknown=1", "K8S_POD_NAMESPACE=shop", "K8S_POD_NAME=cart-1", "K8S_POD_INFRA_CONTAINER_ID=sandbox1", "K8S_POD_UID=u-1"}
	}
	for _, a := range args {
		key, value, _ := strings.Cut(a, "=")
		r.Args = append(r.Args, [2]string{key, value})
	}
	return r
}

// code returns the CNI code of an error: 0 for none, -1 for an error of another kind.
func code(err error) int {
	var e *types.Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return int(e.Code)
	}
	return -1
}
