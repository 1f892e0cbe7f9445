package enroll

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const podAddress = "10.77.0.2"

// podNamespace makes a named network namespace with one address, and removes it after the test.
func podNamespace(t *testing.T, name string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: makes a network namespace")
	}
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	_ = exec.Command("ip", "netns", "del", name).Run()
	ip("netns", "add", name)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	ip("-n", name, "link", "set", "lo", "up")
	ip("-n", name, "addr", "add", podAddress+"/32", "dev", "lo")
	return filepath.Join("/run/netns", name)
}

func TestNamespaceIsProvedByThePodsAddresses(t *testing.T) {
	path := podNamespace(t, "culvert-test-enroll-a")
	n, err := OpenNetns(path, []netip.Addr{netip.MustParseAddr(podAddress)})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if !n.Present() {
		t.Error("an existing namespace is not present")
	}
	if _, err := OpenNetns(path, []netip.Addr{netip.MustParseAddr("10.77.0.3")}); !errors.Is(err, ErrNotThePod) {
		t.Errorf("with a foreign address: %v, want %v", err, ErrNotThePod)
	}
}

func TestWhatIsNoPodNamespaceIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	addresses := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	for name, path := range map[string]string{
		"missing":         filepath.Join(t.TempDir(), "none"),
		"ordinary file":   file,
		"another kind":    "/proc/self/ns/mnt",
		"the agent's own": "/proc/self/ns/net",
	} {
		if n, err := OpenNetns(path, addresses); err == nil {
			n.Close()
			t.Errorf("%s: %s was accepted", name, path)
		}
	}
}

func TestListenerTakesAnotherPortWhenTheApplicationHasIt(t *testing.T) {
	path := podNamespace(t, "culvert-test-enroll-b")
	n, err := OpenNetns(path, []netip.Addr{netip.MustParseAddr(podAddress)})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	first, err := n.Listen(false, 15001)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, err := n.Listen(false, 15001)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if got := first.Addr().(*net.TCPAddr).Port; got != 15001 {
		t.Errorf("first listener has port %d, want 15001", got)
	}
	if got := second.Addr().(*net.TCPAddr).Port; got == 15001 {
		t.Error("two listeners share a port")
	}
}

func TestVanishedNamespaceIsNotPresent(t *testing.T) {
	path := podNamespace(t, "culvert-test-enroll-c")
	n, err := OpenNetns(path, []netip.Addr{netip.MustParseAddr(podAddress)})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := exec.Command("ip", "netns", "del", "culvert-test-enroll-c").Run(); err != nil {
		t.Fatal(err)
	}
	if n.Present() {
		t.Error("a deleted namespace is still present")
	}
}

func TestSocketsAreMadeInsideTheNamespace(t *testing.T) {
	path := podNamespace(t, "culvert-test-enroll-d")
	n, err := OpenNetns(path, []netip.Addr{netip.MustParseAddr(podAddress)})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	files, err := n.Sockets(false, 3)
	if err != nil || len(files) != 3 {
		t.Fatalf("%d sockets, %v; want 3", len(files), err)
	}
	for _, f := range files {
		f.Close()
	}
}
