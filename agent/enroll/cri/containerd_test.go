package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/culvert-mesh/culvert/agent/enroll"
)

const pauseImage = "culvert.test/pause:1"

// containerd is a real one with folders, and a network namespace, of its own.
type containerd struct {
	folder, socket string
	command        *exec.Cmd
	log            bytes.Buffer
}

func startContainerd(t *testing.T) *containerd {
	t.Helper()
	for _, program := range []string{"containerd", "ctr", "runc"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("this machine has no %s", program)
		}
	}
	const plugins = "/usr/lib/cni"
	if _, err := os.Stat(plugins + "/ptp"); err != nil {
		t.Skipf("this machine has no CNI plug-ins in %s", plugins)
	}
	folder, err := os.MkdirTemp("", "cri") // t.TempDir's name is too long for containerd's sockets
	if err != nil {
		t.Fatal(err)
	}
	c := &containerd{folder: folder, socket: filepath.Join(folder, "s")}
	t.Cleanup(func() {
		c.stop()
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	write := func(file, content string) {
		t.Helper()
		path := filepath.Join(folder, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	write("config.toml", fmt.Sprintf(`version = 2
root = "%[1]s/root"
state = "%[1]s/state"
[grpc]
  address = "%[1]s/s"
[ttrpc]
  address = "%[1]s/t"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %[2]q
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %[3]q
    conf_dir = "%[1]s/cni"
`, folder, pauseImage, plugins))
	write("cni/10-test.conflist", fmt.Sprintf(`{"cniVersion":"0.4.0","name":"test","plugins":[{"type":"ptp",
 "ipam":{"type":"host-local","dataDir":"%s/ipam","ranges":[[{"subnet":"10.77.250.0/24"}],[{"subnet":"fd77:250::/64"}]]}}]}`, folder))
	c.start(t)
	c.importPause(t)
	return c
}

func (c *containerd) start(t *testing.T) {
	t.Helper()
	c.command = exec.Command("containerd", "--config", filepath.Join(c.folder, "config.toml"), "--log-level", "warn")
	c.command.Stdout, c.command.Stderr = &c.log, &c.log
	c.command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := c.command.Start(); err != nil {
		t.Fatal(err)
	}
}

func (c *containerd) stop() {
	if c.command != nil {
		_ = c.command.Process.Signal(syscall.SIGTERM)
		_ = c.command.Wait()
		c.command = nil
	}
}

// importPause makes an image of a program that waits.
func (c *containerd) importPause(t *testing.T) {
	t.Helper()
	source, program := filepath.Join(c.folder, "pause.go"), filepath.Join(c.folder, "pause")
	if err := os.WriteFile(source, []byte("package main\nimport \"time\"\nfunc main() { time.Sleep(time.Hour) }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", program, source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	layer := filepath.Join(c.folder, "layer.tar")
	if out, err := exec.Command("tar", "-cf", layer, "-C", c.folder, "pause").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	content, err := tarball.LayerFromFile(layer)
	if err != nil {
		t.Fatal(err)
	}
	image, err := mutate.AppendLayers(empty.Image, content)
	if err != nil {
		t.Fatal(err)
	}
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{OS: "linux", Architecture: goruntime.GOARCH, Config: v1.Config{Entrypoint: []string{"/pause"}},
		RootFS: rootFS(t, image)})
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(c.folder, "image.tar")
	if err := tarball.WriteToFile(archive, name.MustParseReference(pauseImage), image); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		out, err := exec.Command("ctr", "--address", c.socket, "--namespace", "k8s.io", "images", "import",
			"--all-platforms", "--snapshotter", "native", archive).CombinedOutput()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("ctr images import: %v: %s\n%s", err, out, c.log.String())
		}
	}
}

func rootFS(t *testing.T, image v1.Image) v1.RootFS {
	t.Helper()
	c, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return c.RootFS
}

func TestContainerd(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root: runs containerd")
	}
	c := startContainerd(t)
	r := open(t, Options{Socket: c.socket})
	var ids []string
	t.Cleanup(func() {
		ctx, stop := context.WithTimeout(context.Background(), 20*time.Second) // the test's has ended
		defer stop()
		for _, id := range ids {
			_, _ = r.client.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: id})
			_, _ = r.client.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: id})
		}
	})
	run := func(uid string, mode runtime.NamespaceMode) (id string, addresses []netip.Addr) {
		t.Helper()
		answer, err := r.client.RunPodSandbox(t.Context(), &runtime.RunPodSandboxRequest{Config: &runtime.PodSandboxConfig{
			Metadata:     &runtime.PodSandboxMetadata{Name: uid, Namespace: "n", Uid: uid},
			Labels:       map[string]string{uidLabel: uid},
			LogDirectory: c.folder,
			Linux: &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtime.NamespaceOption{Network: mode}}},
		}})
		if err != nil {
			t.Fatalf("run sandbox: %v\n%s", err, c.log.String())
		}
		ids = append(ids, answer.PodSandboxId)
		status, err := r.client.PodSandboxStatus(t.Context(), &runtime.PodSandboxStatusRequest{PodSandboxId: answer.PodSandboxId})
		if err != nil {
			t.Fatal(err)
		}
		network := status.GetStatus().GetNetwork()
		for _, text := range append([]*runtime.PodIP{{Ip: network.GetIp()}}, network.GetAdditionalIps()...) {
			if a, err := netip.ParseAddr(text.GetIp()); err == nil {
				addresses = append(addresses, a)
			}
		}
		return answer.PodSandboxId, addresses
	}
	id, addresses := run("first", runtime.NamespaceMode_POD)
	run("host", runtime.NamespaceMode_NODE)
	if len(addresses) != 2 {
		t.Fatalf("addresses %v, want one of each family", addresses)
	}
	prove := func() {
		t.Helper()
		f, err := r.Netns(t.Context(), "first")
		if err != nil {
			t.Fatal(err)
		}
		netns, err := enroll.NewNetns(f, addresses)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s carries %v", f.Name(), addresses)
		netns.Close()
	}
	prove()
	all, err := r.Sandboxes(t.Context())
	if err != nil || len(all) != 2 || all[0].HostNetwork || !all[1].HostNetwork || all[0].PID == 0 {
		t.Fatalf("sandboxes %+v, %v", all, err)
	}
	byPath, err := r.openByPath(all[0].NetnsPath)
	if err != nil {
		t.Fatal(err)
	}
	same(t, byPath, fmt.Sprintf("/proc/%d/ns/net", all[0].PID))
	byPath.Close()
	if _, err := r.Netns(t.Context(), "host"); !errors.Is(err, ErrHostNetwork) {
		t.Errorf("host network pod: %v", err)
	}
	version, err := r.Version(t.Context())
	if err != nil || !strings.Contains(version, "containerd") {
		t.Errorf("version %q, %v", version, err)
	}
	t.Log(version)

	// Its restart leaves the pods running, and we find them again.
	c.stop()
	if _, err := r.Netns(t.Context(), "first"); err == nil {
		t.Error("answered without containerd")
	}
	c.start(t)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if all, err := r.Sandboxes(t.Context()); err == nil && len(all) == 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not found again after the restart\n%s", c.log.String())
		}
	}
	prove()
	for _, id := range ids {
		if _, err := r.client.StopPodSandbox(t.Context(), &runtime.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
			t.Error(err)
		}
		if _, err := r.client.RemovePodSandbox(t.Context(), &runtime.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
			t.Error(err)
		}
	}
	ids = nil
	if _, err := r.Netns(t.Context(), "first"); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a pod that was removed: %v (sandbox %s)", err, id)
	}
}
