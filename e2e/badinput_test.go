package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/e2e/demo"
)

const strictManifest = "default-strict.yaml"

// brokenPolicies are edits of a STRICT policy that must not take it out of force.
var brokenPolicies = map[string]string{
	"not YAML":        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default-strict\n",
	"unknown mode":    "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default-strict, namespace: default}\nspec: {mtls: {mode: LOOSE}}\n",
	"unknown field":   "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default-strict, namespace: default}\nspec: {mtls: {mod: PERMISSIVE}}\n",
	"impossible port": "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default-strict, namespace: default}\nspec: {selector: {matchLabels: {app: productpage}}, mtls: {mode: DISABLE}, portLevelMtls: {70000: {mode: DISABLE}}}\n",
	"cut off":         "",
}

func TestBrokenPolicyLeavesTheLastGoodOneInForce(t *testing.T) {
	m := startMesh(t)
	for name, text := range brokenPolicies {
		t.Run(name, func(t *testing.T) {
			strictMesh(t, m)
			a := attack(t.Context(), m)
			if err := m.WriteManifest(strictManifest, []byte(text)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(500 * time.Millisecond)
			a.stop()
			checkRepelled(t, a)
			if !reach(t, m) {
				t.Error("mTLS does not work while the policy is broken")
			}
		})
	}
}

// A policy that broke while nobody was looking has no last good version in the new agent; what the kernel
// enforces stands for it.
func TestPolicyThatBreaksWhileTheAgentIsDeadOpensNothing(t *testing.T) {
	m := startMesh(t)
	strictMesh(t, m)
	a := attack(t.Context(), m)
	m.Kill("agent")
	if err := m.WriteManifest(strictManifest, []byte(brokenPolicies["unknown mode"])); err != nil {
		t.Fatal(err)
	}
	if err := m.Start(t.Context(), "agent"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second)
	a.stop()
	checkRepelled(t, a)
	if err := m.Check(); err != nil {
		t.Error(err)
	}
}

// A pod that cannot be enrolled is reported, and is no reason to treat the others differently.
func TestPodWhoseNamespaceCannotBeEnteredStopsNothingElse(t *testing.T) {
	m := startMesh(t)
	strictMesh(t, m)
	for name, netns := range map[string]string{
		"missing": "/run/netns/no-such-namespace", "the agent's own": "/proc/self/ns/net", "another kind": "/proc/self/ns/mnt", "a file": "/etc/hostname",
	} {
		pod := "apiVersion: v1\nkind: Pod\nmetadata:\n  name: lost\n  namespace: default\n  annotations: {culvert.dev/netns: " + netns +
			"}\nspec: {containers: [{name: app}]}\nstatus: {podIPs: [{ip: 10.77.1.200}]}\n"
		t.Run(name, func(t *testing.T) {
			if err := m.WriteManifest("lost.yaml", []byte(pod)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(300 * time.Millisecond)
			if !reach(t, m) {
				t.Error("mTLS of other pods fails")
			}
			if got := m.Request(t.Context(), legacyApp, m.PodAddr(productpage, 4, 9080), "attack"); got.OK {
				t.Error("plaintext on STRICT went through")
			}
			if err := m.Check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A pod that is lost for a while is not open for that while.
func TestPodThatGetsLostAndFoundStaysStrict(t *testing.T) {
	m := startMesh(t)
	strictMesh(t, m)
	a := attack(t.Context(), m)
	netns := m.Netns(productpage)
	cluster, err := m.ReadManifest("cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	other := otherName(t, netns)
	steps := []struct {
		name       string
		lose, find func() error
	}{
		{"its manifest names another namespace",
			func() error {
				return m.WriteManifest("cluster.yaml", bytes.ReplaceAll(cluster, []byte(netns), []byte("/run/netns/nowhere")))
			},
			func() error { return m.WriteManifest("cluster.yaml", cluster) },
		},
		{"the name of its namespace vanishes",
			func() error { return unix.Unmount(netns, unix.MNT_DETACH) },
			func() error { return unix.Mount(other, netns, "", unix.MS_BIND, "") },
		},
	}
	for _, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			if err := step.lose(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(1200 * time.Millisecond)
			if err := step.find(); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "mTLS again", func() bool { return reach(t, m) })
		})
	}
	a.stop()
	checkRepelled(t, a)
}

// otherName gives a network namespace a second name that goes with the test.
func otherName(t *testing.T, netns string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(netns, path, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(fmt.Errorf("second name of %s: %w", netns, err))
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	return path
}

func strictMesh(t *testing.T, m *demo.Mesh) {
	t.Helper()
	if err := m.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Apply(t.Context(), "default-strict"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "mTLS and STRICT", func() bool {
		return reach(t, m) && !m.Request(t.Context(), legacyApp, m.PodAddr(productpage, 4, 9080), "attack").OK
	})
}

func checkRepelled(t *testing.T, a *attacker) {
	t.Helper()
	if len(a.succeeded) > 0 {
		t.Errorf("%d of %d plaintext attempts went through, the first: %+v", len(a.succeeded), a.tries, a.succeeded[0])
	}
	if a.tries < 5 {
		t.Errorf("only %d attempts were made", a.tries)
	}
}

// An empty folder is more likely a volume that is not mounted than the wish to open every pod.
func TestEmptyConfigurationOpensNothing(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		t.Run(fmt.Sprintf("agent restarted %v", restarted), func(t *testing.T) {
			m := startMesh(t)
			strictMesh(t, m)
			a := attack(t.Context(), m)
			if restarted {
				m.Kill("agent")
			}
			for _, name := range []string{strictManifest, "cluster.yaml"} {
				if err := m.RemoveManifest(name); err != nil {
					t.Fatal(err)
				}
			}
			if restarted {
				if err := m.Start(t.Context(), "agent"); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(1500 * time.Millisecond)
			a.stop()
			checkRepelled(t, a)
		})
	}
}
