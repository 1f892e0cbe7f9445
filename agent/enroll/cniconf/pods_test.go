package cniconf

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/culvert-mesh/culvert/agent/enroll/cni"
)

// firstPlugin makes the pod's network, on paper.
const firstPlugin = `#!/bin/sh
cat >/dev/null
[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.77.1.2/32"}]}'
`

// counter is an agent that counts the pods that it is asked about.
type counter struct{ pods atomic.Int32 }

func (c *counter) Add(context.Context, *cni.Request, *os.File) (cni.Response, error) {
	c.pods.Add(1)
	return cni.Response{Enrolled: true}, nil
}
func (c *counter) Check(context.Context, *cni.Request, *os.File) error { return nil }
func (c *counter) Delete(context.Context, *cni.Request) error          { return nil }
func (c *counter) GC(context.Context, *cni.Request) error              { return nil }
func (c *counter) Status(context.Context) error                        { return nil }

// serveCounter answers plugins until the test ends.
func serveCounter(t *testing.T, path string) *counter {
	t.Helper()
	l, err := cni.Listen(path)
	must(t, err)
	c := new(counter)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- cni.Serve(ctx, l, c, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
		must(t, l.Close())
	})
	return c
}

// TestPodsStartWhileTheListIsRewritten: somebody rewrites the list all the time, and a runtime loads it and starts
// pods with the plugin itself. Each list that it loads is whole, each pod starts, and the agent is asked about each
// pod that was started with a list that has the plugin. After uninstalling, everything is as before.
func TestPodsStartWhileTheListIsRewritten(t *testing.T) {
	n := newNode(t)
	must(t, os.Remove(n.plugin))
	build := exec.Command("go", "build", "-o", n.plugin, "github.com/culvert-mesh/culvert/cmd/culvert-cni")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	netns := "culvert-test-cniconf"
	_ = exec.Command("ip", "netns", "del", netns).Run()
	if out, err := exec.Command("ip", "netns", "add", netns).CombinedOutput(); err != nil {
		t.Fatalf("ip netns add (needs root): %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", netns).Run() })
	must(t, os.WriteFile(filepath.Join(n.bin, "first"), []byte(firstPlugin), 0o755))

	const name = "10-net.conflist"
	const original = "{\n  \"cniVersion\": \"0.3.1\",\n  \"name\": \"net\",\n  \"plugins\": [\n    { \"type\": \"first\", \"mtu\": 1500 }\n  ]\n}\n"
	n.write(name, original)
	i := n.installer()
	i.Config.Socket = filepath.Join(n.bin, "cni.sock")
	agent := serveCounter(t, i.Config.Socket)
	n.run(i)
	n.installed(i)

	runtime := libcni.NewCNIConfigWithCacheDir([]string{n.bin}, t.TempDir(), nil)
	rewritten, with := time.Now(), 0
	for pod := range 100 {
		if time.Since(rewritten) > 200*time.Millisecond {
			n.replace(name, original)
			rewritten = time.Now()
		}
		list, err := libcni.NetworkConfFromFile(filepath.Join(n.conf, name))
		must(t, err)
		before := agent.pods.Load()
		if _, err := runtime.AddNetworkList(t.Context(), list, &libcni.RuntimeConf{ContainerID: fmt.Sprintf("c%d", pod),
			NetNS: filepath.Join("/run/netns", netns), IfName: "eth0",
			Args: [][2]string{{"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", fmt.Sprintf("pod-%d", pod)}}}); err != nil {
			t.Fatalf("pod %d: %v", pod, err)
		}
		chained := strings.Contains(string(list.Bytes), PluginName)
		if chained {
			with++
		}
		if asked := agent.pods.Load() > before; asked != chained {
			t.Errorf("pod %d: list has the plugin: %v, agent was asked: %v", pod, chained, asked)
		}
	}
	t.Logf("%d of 100 pods were started with the plugin in the list", with)
	if with < 10 { // most, on a machine that has nothing else to do
		t.Errorf("only %d of 100 pods were started with the plugin in the list", with)
	}
	must(t, i.Uninstall())
	if got := n.read(name); got != original {
		t.Errorf("not restored: %s", got)
	}
	if names := n.names(); len(names) != 1 {
		t.Errorf("left behind: %v", names)
	}
}
