package cri

import (
	"fmt"
	"strings"
	"testing"
)

// The shapes in which runtimes answer, shortened in what is not read here.
const (
	containerd16 = `{"pid":%d,"processStatus":"running","netNamespaceClosed":false,"image":"registry.k8s.io/pause:3.6",
 "snapshotKey":"8f","snapshotter":"overlayfs","runtimeHandler":"","runtimeType":"io.containerd.runc.v2",
 "runtimeOptions":{"systemd_cgroup":true},"config":{"metadata":{"name":"p","uid":"u","namespace":"n"},
 "linux":{"cgroup_parent":"/kubelet/kubepods","security_context":{"namespace_options":{"pid":1}}}},
 "runtimeSpec":{"ociVersion":"1.0.2-dev","process":{"args":["/pause"]},"linux":{"resources":{"cpu":{"shares":2}},
 "namespaces":[{"type":"pid"},{"type":"ipc"},{"type":"uts"},{"type":"mount"},{"type":"network","path":"%s"}]}}}`
	containerd17 = `{"pid":%d,"processStatus":"running","netNamespaceClosed":false,"image":"registry.k8s.io/pause:3.8",
 "snapshotKey":"8f","snapshotter":"overlayfs","runtimeHandler":"","runtimeType":"io.containerd.runc.v2",
 "runtimeOptions":{"systemd_cgroup":true},"config":{"metadata":{"name":"p","uid":"u","namespace":"n"}},
 "runtimeSpec":{"ociVersion":"1.1.0","linux":{"namespaces":[{"type":"pid"},{"type":"ipc"},{"type":"uts"},
 {"type":"mount"},{"type":"network","path":"%s"},{"type":"cgroup"}]}},
 "cniResult":{"Interfaces":{"eth0":{"IPConfigs":[{"IP":"10.244.1.2","Gateway":"10.244.1.1"}],"Mac":"3a:b0"}}}}`
	containerd2 = `{"pid":%d,"processStatus":"SANDBOX_READY","netNamespaceClosed":false,"image":"registry.k8s.io/pause:3.10",
 "snapshotKey":"8f","snapshotter":"overlayfs","runtimeHandler":"runc","runtimeType":"io.containerd.runc.v2","runtimeOptions":null,
 "config":{"metadata":{"name":"p","uid":"u","namespace":"n"}},
 "runtimeSpec":{"ociVersion":"1.2.0","linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"%[2]s"}]}},
 "cniResult":null,"sandboxMetadata":{"Version":"v1","Metadata":{"ID":"8f","Name":"p_n_u_0","NetNSPath":"%[2]s","IP":"10.244.1.2"}}}`
	containerd2Foreign = `{"pid":%d,"processStatus":"SANDBOX_READY","netNamespaceClosed":false,"runtimeHandler":"vm","runtimeSpec":null,
 "sandboxMetadata":{"ID":"8f","NetNSPath":"%s"}}`
	crio = `{"image":"registry.k8s.io/pause:3.9","pid":%d,"runtimeSpec":{"ociVersion":"1.0.2-dev","hostname":"p",
 "linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"%s"},{"type":"ipc","path":"/var/run/ipcns/5d"},
 {"type":"uts","path":"/var/run/utsns/5d"},{"type":"mount"}]}}}`
)

func TestInfoOfEveryRuntime(t *testing.T) {
	for name, shape := range map[string]string{
		"containerd 1.6": containerd16, "containerd 1.7": containerd17, "containerd 2": containerd2,
		"containerd 2 with another sandbox controller": containerd2Foreign, "CRI-O": crio,
	} {
		got, err := parseInfo(map[string]string{"info": fmt.Sprintf(shape, 4711, "/var/run/netns/cni-1")})
		if want := (place{4711, "/var/run/netns/cni-1"}); err != nil || got != want {
			t.Errorf("%s: got %+v, %v; want %+v", name, got, err, want)
		}
	}
}

func TestInfo(t *testing.T) {
	for _, tc := range []struct {
		name  string
		info  map[string]string
		want  place
		error string
	}{
		{name: "none", error: "no verbose information"},
		{name: "no JSON", info: map[string]string{"info": "{pid"}, error: "invalid character"},
		{name: "nothing of use", info: map[string]string{"info": `{"image":"x"}`}, error: "neither a process nor a path"},
		{name: "another shape altogether", info: map[string]string{"info": `["pid",1]`}, error: "neither a process nor a path"},
		{name: "too large", info: map[string]string{"info": `{"pid":1,"x":"` + strings.Repeat("x", maxInfo) + `"}`}, error: "too large"},
		{name: "process as text", info: map[string]string{"info": `{"pid":"42"}`}, want: place{pid: 42}},
		{name: "negative process", info: map[string]string{"info": `{"pid":-1}`}, error: "neither"},
		{name: "process null", info: map[string]string{"info": `{"pid":null,"sandboxMetadata":{"NetNSPath":"/n"}}`}, want: place{path: "/n"}},
		{name: "a pod's network of the host", info: map[string]string{"info": `{"pid":7,"runtimeSpec":{"linux":{"namespaces":[{"type":"network"}]}}}`}, want: place{pid: 7}},
		{name: "spread over keys", info: map[string]string{
			"pid": "42", "runtimeSpec": `{"linux":{"namespaces":[{"type":"network","path":"/n"}]}}`, "version": "v1",
		}, want: place{42, "/n"}},
		{name: "info first", info: map[string]string{"a": `{"pid":1}`, "info": `{"pid":2}`}, want: place{pid: 2}},
		{name: "one of two is broken", info: map[string]string{"a": `{broken`, "info": `{"pid":2}`}, want: place{pid: 2}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseInfo(tc.info)
			if tc.error != "" {
				if err == nil || !strings.Contains(err.Error(), tc.error) {
					t.Fatalf("got %v, want an error with %q", err, tc.error)
				}
				return
			}
			if err != nil || got != tc.want {
				t.Errorf("got %+v, %v; want %+v", got, err, tc.want)
			}
		})
	}
}

// FuzzInfo: whatever a runtime answers, it is read or refused.
func FuzzInfo(f *testing.F) {
	f.Add(fmt.Sprintf(containerd2, 1, "/n"))
	f.Add(fmt.Sprintf(crio, 1, "/n"))
	f.Fuzz(func(t *testing.T, value string) {
		got, err := parseInfo(map[string]string{"info": value})
		if (err == nil) == (got == place{}) {
			t.Errorf("got %+v, %v", got, err)
		}
	})
}
