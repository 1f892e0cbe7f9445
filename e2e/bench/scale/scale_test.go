package main

import (
	"bytes"
	"context"
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestRun measures a small cluster. It asserts that figures are there, never how large they are.
func TestRun(t *testing.T) {
	if os.Getenv(binariesVariable) == "" {
		t.Skip(binariesVariable + " names no folder with kube-apiserver, etcd and kubectl")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	for _, name := range []string{"culvert", "culvert-cni"} {
		build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, name), "../../../cmd/"+name)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	var out bytes.Buffer
	err := run(t.Context(), []string{
		"--agent", filepath.Join(dir, "culvert"), "--crds", "../../../daemonset/crds", "--run-dir", filepath.Join(dir, "run"),
		"--pods", "300", "--local-pods", "10", "--nodes", "9", "--namespaces", "20", "--services", "30", "--policies", "60",
		"--rate", "60", "--samples", "10", "--duration", "4s", "--watchers", "2", "-o", "json",
	}, &out, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("output is not JSON: %v\n%s", err, &out)
	}
	if r.Failures > 0 {
		t.Errorf("changes failed: %v", r.Failed)
	}
	for what, zero := range map[string]bool{
		"memory": r.SteadyMemory.Most == 0, "first snapshot": r.FirstSync == 0, "CPU of the API server": r.CPU["kube-apiserver"] == 0,
		"timed policies": r.Enforced.Count == 0, "announced pods": r.Add.Count != 10, "pods enrolled after a restart": r.Enrolled == 0,
		"size of an event": r.EventBytes == 0, "rate": r.Rate == 0,
	} {
		if zero {
			t.Errorf("not measured: %s\n%s", what, &out)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "run")); !os.IsNotExist(err) {
		t.Errorf("the run's folder is left: %v", err)
	}
}

func TestParseOptions(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"kube-apiserver", "etcd", "kubectl", "culvert"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	files := []string{"--binaries", dir, "--agent", filepath.Join(dir, "culvert"), "--crds", dir}
	tests := []struct {
		args string
		want string // part of the error; "" for none
	}{
		{"", ""},
		{"--pods 500 --local-pods 20 --nodes 10", ""},
		{"--pods 10", "fewer than the 110 local ones"},
		{"--pods 50000 --nodes 20", "on one"},
		{"--local-pods 0", "--local-pods 0"},
		{"--policies 20", "one of its own"},
		{"--rate 5 --samples 6", "--rate"},
		{"--agent /nowhere", "no such file"},
		{"-o yaml", "table or json"},
		{"more", "unexpected argument"},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			_, err := parseOptions(append(files, strings.Fields(tt.args)...), t.Output())
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("err = %v, want %q", err, tt.want)
			}
		})
	}
}

// TestPlan: no two pods have an address in common, and each lies in its node's range.
func TestPlan(t *testing.T) {
	p := newPlan(options{pods: 50_000, localPods: 110, nodes: 450, namespaces: 1_000, services: 5_000, policies: 10_000})
	seen := map[netip.Addr]bool{}
	for _, s := range p.slots[p.options.localPods:] {
		for _, a := range s.addresses {
			if seen[a] {
				t.Fatalf("%s is given to two pods", a)
			}
			seen[a] = true
		}
	}
	if len(seen) != 2*(50_000-110) {
		t.Errorf("%d addresses", len(seen))
	}
	names := map[string]bool{}
	for i := range p.options.policies {
		o := p.policyObject(i, seedMode(i))
		if names[o.Namespace+"/"+o.Name] {
			t.Fatalf("two policies are %s/%s", o.Namespace, o.Name)
		}
		names[o.Namespace+"/"+o.Name] = true
	}
}

// TestPick: the shares come out in writes, not in changes.
func TestPick(t *testing.T) {
	x := newChanger(nil, nil)
	random := rand.New(rand.NewPCG(1, 2))
	writes, total := map[string]int{}, 0
	for range 100_000 {
		k := x.pick(random)
		writes[k.name] += k.writes
		total += k.writes
	}
	for _, k := range x.kinds {
		if share := 100 * writes[k.name] / total; share < k.share-1 || share > k.share+1 {
			t.Errorf("%s: %d %%, want %d %%", k.name, share, k.share)
		}
	}
}

func TestMarks(t *testing.T) {
	m := newMarks()
	for _, part := range []string{`{"msg":"pod en`, "rolled\"}\n{\"msg\":\"other\"}\nnot JSON\n", `{"msg":"pod enrolled"}`} {
		if _, err := m.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	if n := m.count("pod enrolled"); n != 1 {
		t.Errorf("%d, want 1: the last line has not ended", n)
	}
}

func TestSpread(t *testing.T) {
	var times []time.Duration
	for i := range 200 {
		times = append(times, time.Duration(i)*time.Millisecond)
	}
	if s := newSpread(times); s.Count != 200 || s.Median != 100e6 || s.P99 != 198e6 || s.Max != 199e6 {
		t.Errorf("%+v", s)
	}
	if s := newSpread(nil); s != (spread{}) {
		t.Errorf("of nothing: %+v", s)
	}
}

// TestUsage reads this process's own figures.
func TestUsage(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m, err := steadyMemory(ctx, os.Getpid())
	if err != nil || m.Now == 0 || m.Anon == 0 || m.Most < m.Now {
		t.Errorf("%+v, %v", m, err)
	}
	if _, err := cpuTime(os.Getpid()); err != nil {
		t.Error(err)
	}
	if idle, total, err := machineIdle(); err != nil || total == 0 || idle > total {
		t.Errorf("idle %s of %s, %v", idle, total, err)
	}
}

func TestKept(t *testing.T) {
	data, to := t.TempDir(), filepath.Join(t.TempDir(), "etcd")
	k := kept{filepath.Join(t.TempDir(), "keep", "etcd-1")}
	if there, err := k.restore(to); there || err != nil {
		t.Fatalf("before: %t, %v", there, err)
	}
	if err := os.WriteFile(filepath.Join(data, "db"), []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := k.save(data); err != nil {
		t.Fatal(err)
	}
	there, err := k.restore(to)
	if got, _ := os.ReadFile(filepath.Join(to, "db")); !there || err != nil || string(got) != "data" {
		t.Errorf("after: %t, %v, %q", there, err, got)
	}
}
