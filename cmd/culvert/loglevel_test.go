package main

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/culvert-mesh/culvert/agent/admin"
)

// levelled is an agent with one tunnel.
type levelled struct {
	admin.Node
	mu  sync.Mutex
	now admin.LogLevels
}

func (l *levelled) LogLevels(_ context.Context, change admin.LogChange) (*admin.LogLevels, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if change.Agent != "" {
		l.now.Agent = change.Agent
	}
	if change.Tunnel != "" {
		if l.now.Tunnels[0].Version == admin.VersionUnknown {
			return nil, errors.New("too old")
		}
		l.now.Tunnels[0].Level = change.Tunnel
	}
	now := l.now
	now.Tunnels = slices.Clone(now.Tunnels)
	return &now, nil
}

func TestLogLevelIsShownAndChanged(t *testing.T) {
	nodes := map[string]*levelled{}
	in := &seeingCluster{sockets: map[string]string{"n3": ""}}
	for name, tunnel := range map[string]string{"n1": version, "n2": admin.VersionUnknown} {
		nodes[name] = &levelled{now: admin.LogLevels{Node: name, Agent: "info", Tunnels: []admin.TunnelLevel{{Version: tunnel, Level: "info"}}}}
		in.sockets[name] = serveNode(t, nodes[name], version)
	}
	tests := []struct {
		name   string
		args   string
		alone  bool // without a cluster
		code   int
		out    string // as fields of the first line that has them
		agent  string // of n1, afterwards
		tunnel string
	}{
		{"all nodes", "", false, 1, "n1 agent dev info", "info", "info"},
		{"who does not answer is named", "", false, 1, "agent of node n3: no answer within 1m0s", "info", "info"},
		{"an agent's", "debug --node n1", false, 0, "n1 agent dev debug", "debug", "info"},
		{"a tunnel's", "warn --node n1 --tunnel", false, 0, "n1 tunnel dev warn", "debug", "warn"},
		{"on the node", "error --local --admin-socket " + in.sockets["n1"], true, 0, "n1 agent dev error", "error", "warn"},
		{"a tunnel that is too old", "debug --node n2 --tunnel", false, 1, "too old", "error", "warn"},
		{"of all at once", "debug", false, 2, "", "error", "warn"},
		{"no level", "loud --node n1", false, 2, "", "error", "warn"},
		{"a tunnel's without a level", "--tunnel --node n1", false, 2, "", "error", "warn"},
		{"two levels", "debug info --local", false, 2, "", "error", "warn"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := in
			if test.alone {
				c = nil
			}
			out, _, err := runSeeing(t.Context(), c, append([]string{"loglevel"}, strings.Fields(test.args)...)...)
			if codeOf(err) != test.code {
				t.Fatalf("exit code %d, want %d: %v\n%s", codeOf(err), test.code, err, out)
			}
			if got := strings.Join(strings.Fields(out), " "); !strings.Contains(got, test.out) {
				t.Errorf("no %q in:\n%s", test.out, out)
			}
			if n := &nodes["n1"].now; n.Agent != test.agent || n.Tunnels[0].Level != test.tunnel {
				t.Errorf("agent %s, tunnel %s; want %s, %s", n.Agent, n.Tunnels[0].Level, test.agent, test.tunnel)
			}
		})
	}
	out, _, err := runSeeing(t.Context(), in, "loglevel", "--node", "n1", "-o", "json")
	var got logLevels
	if err := errors.Join(err, json.Unmarshal([]byte(out), &got)); err != nil || len(got.Nodes) != 1 || got.Nodes[0].Agent != "error" || got.Nodes[0].Version != version {
		t.Errorf("%v: %s", err, out)
	}
}
