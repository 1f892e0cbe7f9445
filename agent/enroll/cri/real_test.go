package cri

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/culvert-mesh/culvert/agent/enroll"
)

// TestRealRuntime opens the namespace of every pod that a real runtime runs, and proves each by the addresses that
// the runtime gave the pod. It runs on a node: CULVERT_CRI_SOCKET=auto cri.test -test.run TestRealRuntime -test.v
func TestRealRuntime(t *testing.T) {
	socket := os.Getenv("CULVERT_CRI_SOCKET")
	if socket == "" {
		t.Skip("CULVERT_CRI_SOCKET names no runtime: this test is run by hand on a node; TestContainerd starts a runtime of its own")
	}
	r := open(t, Options{Socket: socket})
	version, err := r.Version(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Log(version)
	all, err := r.Sandboxes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	opened := 0
	for _, s := range all {
		f, err := r.Netns(t.Context(), s.UID)
		if s.HostNetwork {
			if err == nil {
				f.Close()
				t.Errorf("%s: a host network pod's namespace was opened", s.Ref())
			}
			t.Logf("%s: host network, process %d", s.Ref(), s.PID)
			continue
		}
		if err != nil {
			t.Error(err)
			continue
		}
		opened++
		check(t, r, s, f)
		if s.NetnsPath != "" {
			byPath, err := r.openByPath(s.NetnsPath)
			if err != nil {
				t.Errorf("%s: by path: %v", s.Ref(), err)
			} else {
				same(t, byPath, f.Name())
				byPath.Close()
			}
		}
		f.Close()
	}
	if opened == 0 {
		t.Errorf("no pod with a namespace of its own among %d", len(all))
	}
}

func check(t *testing.T, r *Runtime, s Sandbox, f *os.File) {
	t.Helper()
	answer, err := r.client.PodSandboxStatus(t.Context(), &runtime.PodSandboxStatusRequest{PodSandboxId: s.ID})
	if err != nil {
		t.Error(err)
		return
	}
	network := answer.GetStatus().GetNetwork()
	texts := []string{network.GetIp()}
	for _, more := range network.GetAdditionalIps() {
		texts = append(texts, more.GetIp())
	}
	var addresses []netip.Addr
	for _, text := range texts {
		a, err := netip.ParseAddr(text)
		if err != nil {
			t.Errorf("%s: address %q", s.Ref(), text)
			return
		}
		addresses = append(addresses, a)
	}
	own, err := os.Open(f.Name())
	if err != nil {
		t.Error(err)
		return
	}
	proved, err := enroll.NewNetns(own, addresses)
	if err != nil {
		t.Errorf("%s: %v", s.Ref(), err)
		return
	}
	if !proved.Present() {
		t.Errorf("%s: not present although its process lives", s.Ref())
	}
	proved.Close()
	t.Logf("%s: attempt %d, process %d, %s, has %s", s.Ref(), s.Attempt, s.PID, s.NetnsPath, strings.Join(texts, " "))
}
