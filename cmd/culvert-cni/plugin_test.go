package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/agent/enroll/cni"
)

func TestEveryVersion(t *testing.T) {
	h := newHost(t)
	a := &agent{}
	h.serve(a)
	real, err := os.Stat(h.netns)
	must(t, err)
	for _, v := range []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(v, func(t *testing.T) {
			list, rt := h.list(v, ""), h.runtime()
			result, err := h.cni.AddNetworkList(t.Context(), list, rt)
			must(t, err)
			if result.Version() != v {
				t.Errorf("result of version %s", result.Version())
			}
			r, err := types100.NewResultFromResult(result)
			must(t, err)
			if len(r.IPs) != 2 || r.IPs[0].Address.IP.String() != podAddress || len(r.Interfaces) != 2 || len(r.DNS.Nameservers) != 1 {
				t.Errorf("result is not what went in: %v", r)
			}
			asked, _ := a.last()
			if asked.Command != cni.Add || asked.PodNamespace != "shop" || asked.PodName != "cart-1" || asked.PodUID != "u-1" ||
				asked.ContainerID != "sandbox1" || asked.NetnsPath != h.netns || len(asked.Addresses) != 1 || asked.Addresses[0].String() != podAddress {
				t.Errorf("asked %+v", asked)
			}
			a.mu.Lock()
			if !os.SameFile(a.netns[len(a.netns)-1], real) {
				t.Error("another namespace arrived")
			}
			a.mu.Unlock()
			if !strings.HasPrefix(v, "0.3") {
				must(t, h.cni.CheckNetworkList(t.Context(), list, rt))
				if asked, _ := a.last(); asked.Command != cni.Check || len(asked.Addresses) != 1 {
					t.Errorf("asked %+v", asked)
				}
			}
			must(t, h.cni.GetStatusNetworkList(t.Context(), list))
			must(t, h.cni.GCNetworkList(t.Context(), list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "sandbox1", IfName: "eth0"}}}))
			if asked, _ := a.last(); v == "1.1.0" && (asked.Command != cni.GC || len(asked.Valid) != 1 || asked.Valid[0].ContainerID != "sandbox1") {
				t.Errorf("asked %+v", asked)
			}
			must(t, h.cni.DelNetworkList(t.Context(), list, rt))
			if asked, _ := a.last(); asked.Command != cni.Delete || asked.ContainerID != "sandbox1" {
				t.Errorf("asked %+v", asked)
			}
		})
	}
	for _, v := range []string{"0.2.0", ""} {
		if _, err := h.cni.AddNetworkList(t.Context(), h.list(v, ""), h.runtime()); code(err) != int(types.ErrIncompatibleCNIVersion) {
			t.Errorf("version %q: %v", v, err)
		}
	}
}

func TestPodIsNotToBeEnrolled(t *testing.T) {
	h := newHost(t)
	a := &agent{reason: "nobody asks"}
	h.serve(a)
	if _, err := h.cni.AddNetworkList(t.Context(), h.list("1.0.0", ""), h.runtime()); err != nil {
		t.Error(err)
	}
}

func TestAgentComesInTime(t *testing.T) {
	h := newHost(t)
	a := &agent{}
	timer := time.AfterFunc(500*time.Millisecond, func() { h.serve(a) })
	defer timer.Stop()
	began := time.Now()
	_, err := h.cni.AddNetworkList(t.Context(), h.list("1.0.0", `,"timeout":"20s"`), h.runtime())
	if took := time.Since(began); err != nil || took < 500*time.Millisecond {
		t.Errorf("after %s: %v", took, err)
	} else {
		t.Logf("agent came after 500ms, ADD returned after %s", took)
	}
	// An agent that is there and not ready yet is waited for as well.
	a.set("", &cni.Error{Code: cni.CodeTryAgain, Msg: "caches are not filled yet", Retry: true})
	before := len(a.all())
	go func() {
		for len(a.all()) == before && t.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
		a.set("", nil)
	}()
	_, err = h.cni.AddNetworkList(t.Context(), h.list("1.0.0", `,"timeout":"20s"`), h.runtime())
	if asked := len(a.all()) - before; err != nil || asked < 2 {
		t.Errorf("asked %d times: %v", asked, err)
	}
}

func TestAgentAway(t *testing.T) {
	h := newHost(t)
	closed, open := `,"timeout":"300ms"`, `,"timeout":"300ms","failOpen":true`
	began := time.Now()
	_, err := h.cni.AddNetworkList(t.Context(), h.list("1.1.0", closed), h.runtime())
	took := time.Since(began)
	if code(err) != int(types.ErrTryAgainLater) || took < 300*time.Millisecond {
		t.Errorf("ADD after %s: code %d, %v", took, code(err), err)
	}
	t.Logf("ADD after %s: %v", took, err)
	if _, err := h.cni.AddNetworkList(t.Context(), h.list("1.1.0", open), h.runtime()); err != nil {
		t.Errorf("ADD, fail-open: %v", err)
	}
	if err := h.cni.CheckNetworkList(t.Context(), h.list("1.1.0", closed), h.runtime()); code(err) != int(types.ErrTryAgainLater) {
		t.Errorf("CHECK: %v", err)
	}
	if err := h.cni.GetStatusNetworkList(t.Context(), h.list("1.1.0", closed)); code(err) != int(types.ErrPluginNotAvailable) {
		t.Errorf("STATUS: %v", err)
	}
	if err := h.cni.GetStatusNetworkList(t.Context(), h.list("1.1.0", open)); err != nil {
		t.Errorf("STATUS, fail-open: %v", err)
	}
	if err := h.cni.GCNetworkList(t.Context(), h.list("1.1.0", closed), &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}); err != nil {
		t.Errorf("GC: %v", err)
	}
	began = time.Now()
	if err := h.cni.DelNetworkList(t.Context(), h.list("1.1.0", ""), h.runtime()); err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("DEL after %s: %v", time.Since(began), err)
	}
}

// TestAgentSaysNo: what the agent refuses, failOpen does not forgive.
func TestAgentSaysNo(t *testing.T) {
	h := newHost(t)
	a := &agent{}
	h.serve(a)
	list := h.list("1.1.0", `,"failOpen":true`)
	_, err := h.cni.AddNetworkList(t.Context(), list, h.runtime())
	must(t, err)
	a.set("", errors.New("network namespace does not carry the pod's addresses"))
	if _, err := h.cni.AddNetworkList(t.Context(), list, h.runtime()); code(err) != cni.CodeTryAgain || !strings.Contains(err.Error(), "carry") {
		t.Errorf("ADD: %v", err)
	}
	hasty := h.list("1.1.0", `,"failOpen":true,"timeout":"200ms"`)
	a.set("", &cni.Error{Msg: "not proved", Retry: true})
	if _, err := h.cni.AddNetworkList(t.Context(), hasty, h.runtime()); code(err) != cni.CodeTryAgain {
		t.Errorf("ADD that may be asked again: %v", err)
	}
	a.set("", &cni.Error{Code: cni.CodeUnavailable, Msg: "caches are not filled yet", Retry: true})
	if _, err := h.cni.AddNetworkList(t.Context(), hasty, h.runtime()); err != nil {
		t.Errorf("ADD of an agent that is not ready: %v", err)
	}
	a.set("", errors.New("not enforced"))
	if err := h.cni.CheckNetworkList(t.Context(), list, h.runtime()); code(err) != cni.CodeNotEnforced {
		t.Errorf("CHECK: %v", err)
	}
	if err := h.cni.GetStatusNetworkList(t.Context(), list); code(err) != int(types.ErrPluginNotAvailable) {
		t.Errorf("STATUS: %v", err)
	}
	if err := h.cni.DelNetworkList(t.Context(), list, h.runtime()); err != nil {
		t.Errorf("DEL: %v", err)
	}
}

func TestArguments(t *testing.T) {
	h := newHost(t)
	a := &agent{}
	h.serve(a)
	for name, tc := range map[string]struct {
		options string
		args    []string
		code    int
		asked   bool
	}{
		"not Kubernetes":                    {"", []string{"IgnoreUnknown=1"}, 0, false},
		"not Kubernetes, but a pod is must": {`,"requirePod":true`, []string{"IgnoreUnknown=1"}, int(types.ErrInvalidEnvironmentVariables), false},
		"half of Kubernetes":                {"", []string{"K8S_POD_NAMESPACE=shop"}, int(types.ErrInvalidEnvironmentVariables), false},
		"no UID":                            {"", []string{"K8S_POD_NAMESPACE=shop", "K8S_POD_NAME=a"}, 0, true},
		"a name that is none":               {"", []string{"K8S_POD_NAMESPACE=shop", "K8S_POD_NAME=../a"}, cni.CodeInvalidRequest, false},
		"bad timeout":                       {`,"timeout":"soon"`, nil, int(types.ErrInvalidNetworkConfig), false},
		"relative socket":                   {`,"socket":"cni.sock"`, nil, int(types.ErrInvalidNetworkConfig), false},
	} {
		_, before := a.last()
		_, err := h.cni.AddNetworkList(t.Context(), h.list("1.0.0", tc.options), h.runtime(tc.args...))
		if _, after := a.last(); code(err) != tc.code || (after > before) != tc.asked {
			t.Errorf("%s: code %d, %v; asked %v", name, code(err), err, after > before)
		}
	}
	alone, err := libcni.NetworkConfFromBytes([]byte(`{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"culvert-cni"}]}`))
	must(t, err)
	_, err = h.cni.AddNetworkList(t.Context(), alone, h.runtime())
	if code(err) != int(types.ErrInvalidNetworkConfig) || !strings.Contains(err.Error(), "no prevResult") {
		t.Errorf("first in the list: %v", err)
	}
	gone := h.runtime()
	gone.NetNS = "/run/netns/culvert-test-none"
	if _, err = h.cni.AddNetworkList(t.Context(), h.list("1.0.0", ""), gone); code(err) != int(types.ErrInvalidNetNS) {
		t.Errorf("no namespace: %v", err)
	}
	gone.NetNS = "" // the runtime may have lost it by then
	if err = h.cni.DelNetworkList(t.Context(), h.list("1.0.0", ""), gone); err != nil {
		t.Errorf("DEL without namespace: %v", err)
	}
}

// TestAfterPtp chains behind the ptp plugin as distributed, in a host namespace of its own, because ptp changes the
// host's.
func TestAfterPtp(t *testing.T) {
	if _, err := exec.LookPath("/usr/lib/cni/ptp"); err != nil {
		t.Skip("no /usr/lib/cni/ptp (Debian: containernetworking-plugins)")
	}
	h := newHost(t)
	a := &agent{}
	h.serve(a)
	list, err := libcni.NetworkConfFromBytes([]byte(`{"cniVersion":"1.0.0","name":"net","plugins":[
		{"type":"ptp","ipam":{"type":"host-local","dataDir":"` + t.TempDir() + `","ranges":[[{"subnet":"10.77.2.0/24"}]]}},
		{"type":"culvert-cni","socket":"` + h.socket + `"}]}`))
	must(t, err)
	failed := make(chan error, 1)
	go func() {
		// The thread ends with the goroutine; what it starts begins in its namespace.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			failed <- err
			return
		}
		_, err := h.cni.AddNetworkList(t.Context(), list, h.runtime())
		failed <- errors.Join(err, h.cni.CheckNetworkList(t.Context(), list, h.runtime()), h.cni.DelNetworkList(t.Context(), list, h.runtime()))
	}()
	must(t, <-failed)
	asked := a.all()
	if len(asked) != 3 || len(asked[0].Addresses) != 1 || !strings.HasPrefix(asked[0].Addresses[0].String(), "10.77.2.") {
		t.Errorf("asked %+v", asked)
	}
}

// TestSizeAndStart: the plugin is started several times for each pod.
func TestSizeAndStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "culvert-cni")
	buildPlugin(t, path)
	info, err := os.Stat(path)
	must(t, err)
	best := time.Hour
	for range 20 {
		cmd := exec.Command(path)
		cmd.Env = []string{"CNI_COMMAND=VERSION"}
		began := time.Now()
		out, err := cmd.Output()
		if err != nil || !strings.Contains(string(out), "1.1.0") {
			t.Fatalf("VERSION: %s, %v", out, err)
		}
		best = min(best, time.Since(began))
	}
	t.Logf("%.1f MB, started and ended in %s", float64(info.Size())/1e6, best)
	if info.Size() > 8<<20 {
		t.Errorf("%d bytes, want less than 8 MiB", info.Size())
	}
	if best > 50*time.Millisecond { // 10 ms on a machine that has nothing else to do
		t.Errorf("starts and ends in %s", best)
	}
}

// TestNothingBigIsLinked: a Kubernetes client would be ten times the plugin.
func TestNothingBigIsLinked(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	must(t, err)
	for _, p := range strings.Fields(string(out)) {
		host, _, _ := strings.Cut(p, "/")
		switch {
		case !strings.Contains(host, "."), strings.HasPrefix(p, "golang.org/x/sys/"), strings.HasPrefix(p, "github.com/containernetworking/cni/pkg/"),
			p == "github.com/vishvananda/netns", strings.HasSuffix(p, "/agent/enroll/cni"), strings.HasSuffix(p, "/cmd/culvert-cni"):
		default:
			t.Errorf("links %s", p)
		}
	}
}
