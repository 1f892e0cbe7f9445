package main

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/agent/admin"
)

func exampleStatus(node string) *admin.Status {
	now := exampleTime()
	expiry := now.Add(7*time.Hour + 30*time.Minute)
	return &admin.Status{
		Answer: admin.Answer{Version: version, Time: now}, Node: node, Started: now.Add(-49 * time.Hour), Ready: true,
		Source:  admin.SourceStatus{Generation: 7, Pods: 412},
		Tunnels: []admin.TunnelStatus{{Version: version, ConnectedSince: now.Add(-time.Hour)}},
		Workloads: admin.WorkloadStatus{Enrolled: 12, NotEnrolled: []admin.ReasonCount{
			{Reason: "neither namespace nor pod asks for it", Count: 9}, {Reason: "hostNetwork", Count: 1}}},
		Certificates: admin.CertificateStatus{Source: "istiod", Total: 5, NextExpiry: &expiry},
		Kernel:       admin.KernelStatus{Release: "6.12.9"},
		Maps:         []admin.MapStatus{{Name: "plaintext", Entries: 16384, MaxEntries: 16384, Recycles: true}, {Name: "modes", Entries: 600, MaxEntries: 65536}, {Name: "workloads", Entries: 96, MaxEntries: 4096}},
		Counters:     map[string]uint64{"strict_refused": 4, "strict_refused_no_mode": 1, "plaintext_accepted": 99},
		Problems:     []string{},
	}
}

func sickStatus(node string) *admin.Status {
	s := exampleStatus(node)
	s.Tunnels, s.Version = nil, "v0.9"
	s.Certificates.Failing, s.Workloads.FailingCount = 2, 1
	s.Kernel.Missing = []admin.MissingFeature{{Name: "error of a refused connect", Needed: "Linux 5.18", Optional: true}}
	s.Problems = []string{"no tunnel is connected to the agent", "2 certificates cannot be had or renewed: CA is away"}
	s.Foreign = []admin.ForeignProgram{{Hook: "CGroupInet4Connect", ID: 7, Name: "cil_sock4_connect"}, {Hook: "SkLookup", Workload: "shop/cart-1", ID: 8}}
	return s
}

func TestStatusForPeople(t *testing.T) {
	all := &nodesStatus{[]nodeStatus{
		{Node: "worker-1", Agent: true, Status: exampleStatus("worker-1")},
		{Node: "worker-2", Agent: true, Status: sickStatus("worker-2")},
		{Node: "worker-3", Agent: true, Error: "agent (pod culvert-agent-x) does not run: ImagePullBackOff"},
		{Node: "control-1"},
	}}
	now := exampleTime().Add(time.Second)
	goldenFile(t, "status.txt", rendered(false, func(s *screen) { all.show(s, now) }))
	goldenFile(t, "status-wide.txt", rendered(true, func(s *screen) { all.show(s, now) }))
}

func TestStatusOfEveryNode(t *testing.T) {
	well, sick := &answeringNode{status: exampleStatus("a")}, &answeringNode{status: sickStatus("b")}
	sockets := map[string]string{"a": serveNode(t, well, version), "b": serveNode(t, sick, version), "gone": filepath.Join(t.TempDir(), "none.sock")}
	newFleet := func(agents ...string) *fakeFleet {
		f := &fakeFleet{nodes: []string{"a", "b", "bare"}, agents: map[string]string{}, sockets: sockets}
		for _, node := range agents {
			f.agents[node] = ""
		}
		return f
	}
	t.Setenv("KUBECONFIG", "/is/named") // or this machine's own would count
	pending := newFleet("a")
	pending.agents["late"] = "agent (pod x) does not run: it is Pending"
	unlisted := newFleet("a")
	unlisted.nodes, unlisted.nodesErr = nil, errors.New("API server: nodes: forbidden")
	for name, tc := range map[string]struct {
		fleet *fakeFleet
		args  []string
		code  int
		nodes map[string]string // what is the matter, or the number of problems, by node
		err   string
		note  string
	}{
		"well":                {newFleet("a"), nil, 0, map[string]string{"a": "", "b": "none", "bare": "none"}, "", ""},
		"one is sick":         {newFleet("a", "b"), nil, 1, map[string]string{"a": "", "b": "2", "bare": "none"}, "", ""},
		"one does not answer": {newFleet("a", "gone"), nil, 1, map[string]string{"a": "", "b": "none", "bare": "none", "gone": "no agent's socket"}, "", ""},
		"one is older":        {newFleet("a", "ancient"), nil, 1, map[string]string{"a": "", "b": "none", "bare": "none", "ancient": "older version than this command"}, "", ""},
		"one does not run":    {pending, nil, 1, map[string]string{"a": "", "b": "none", "bare": "none", "late": "it is Pending"}, "", ""},
		"only one is asked":   {newFleet("a", "b"), []string{"--node", "a"}, 0, map[string]string{"a": ""}, "", ""},
		"nodes are secret":    {unlisted, nil, 0, map[string]string{"a": ""}, "", "nodes without an agent are not shown: API server: nodes: forbidden"},
		"no agents":           {newFleet(), nil, 1, nil, "agents run on nowhere", ""},
		"local":               {nil, []string{"--local", "--admin-socket", sockets["a"]}, 0, map[string]string{"a": ""}, "", ""},
		"local and sick":      {nil, []string{"--local", "--admin-socket", sockets["b"]}, 1, map[string]string{"b": "2"}, "", ""},
		"local without one":   {nil, []string{"--local", "--admin-socket", sockets["gone"]}, 1, nil, "no agent's socket on this machine", ""},
		"no cluster":          {nil, []string{"--admin-socket", sockets["gone"]}, 1, nil, "no kubeconfig", ""},
		"an argument":         {nil, []string{"a"}, 2, nil, "culvert status --help", ""},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, err := runAnswers(t.Context(), tc.fleet, append([]string{"status", "-o", "json"}, tc.args...)...)
			if codeOf(err) != tc.code || tc.err != "" && !strings.Contains(err.Error(), tc.err) || !strings.Contains(stderr, tc.note) {
				t.Fatalf("code %d, %v, %s", codeOf(err), err, stderr)
			}
			if tc.nodes == nil {
				return
			}
			var got nodesStatus
			if err := json.Unmarshal([]byte(stdout), &got); err != nil {
				t.Fatal(err)
			}
			if len(got.Nodes) != len(tc.nodes) {
				t.Errorf("%d nodes, want %d", len(got.Nodes), len(tc.nodes))
			}
			for _, n := range got.Nodes {
				want, matter := tc.nodes[n.Node], n.Error
				switch {
				case n.Error == "" && n.Status == nil:
					matter = "none"
				case n.Status != nil && len(n.Status.Problems) > 0:
					matter = string(rune('0' + len(n.Status.Problems)))
				}
				if (matter == "") != (want == "") || !strings.Contains(matter, want) {
					t.Errorf("%s: %q, want %q", n.Node, matter, want)
				}
			}
		})
	}
}

func TestProgramsOfOthersAreAskedForByName(t *testing.T) {
	node := &answeringNode{status: exampleStatus("a")}
	f := &fakeFleet{agents: map[string]string{"a": ""}, sockets: map[string]string{"a": serveNode(t, node, version)}}
	for _, args := range [][]string{{"status", "--node", "a"}, {"status", "--node", "a", "--foreign"}} {
		if _, _, err := runAnswers(t.Context(), f, args...); err != nil || node.foreign != slices.Contains(args, "--foreign") {
			t.Errorf("%q: asked %v, %v", args, node.foreign, err)
		}
	}
	want := []string{"a: status --local -o json", "a: status --local -o json --foreign"}
	if !slices.Equal(f.asked, want) {
		t.Errorf("asked %q, want %q", f.asked, want)
	}
}

func TestStatusIsInterrupted(t *testing.T) {
	socket := serveNode(t, &answeringNode{hang: true}, version)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, _, err := runAnswers(ctx, nil, "status", "--local", "--admin-socket", socket)
	if codeOf(err) != exitInterrupted || !strings.Contains(err.Error(), "status: interrupted") {
		t.Error(err)
	}
}
