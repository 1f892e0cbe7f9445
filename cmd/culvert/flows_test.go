package main

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/agent/observe"
	"github.com/culvert-mesh/culvert/agent/source/kube/exec"
)

func recorded(events ...observe.Event) *observe.Recorder {
	r := observe.New(observe.Options{})
	for i, e := range events {
		e.Number = uint64(i + 1)
		r.Flow(e, nil, observe.Peer{})
	}
	return r
}

func TestFlowsAreFiltered(t *testing.T) {
	refused := seenEvent(observe.Refused, "old/legacy", "shop/cart-7f", 8080)
	refused.Reason = "plaintext to a STRICT port"
	far := seenEvent(observe.MTLS, "", "shop/cart-7f", 8080)
	far.Source.Identity = "spiffe://other/ns/far/sa/away"
	socket := serveNode(t, &seeingNode{node: "n1", memory: recorded(
		seenEvent(observe.MTLS, "web/front", "shop/cart-7f", 8080), refused, seenEvent(observe.Plaintext, "shop/till", "bank/safe", 5432), far,
	)}, version)
	tests := map[string]struct {
		args []string
		want string // the carried column, in order
	}{
		"all":                     {nil, "mtls refused plaintext mtls"},
		"namespace of either":     {[]string{"-n", "shop"}, "mtls refused plaintext mtls"},
		"another namespace":       {[]string{"--namespace", "bank"}, "plaintext"},
		"of an identity":          {[]string{"-n", "far"}, "mtls"},
		"pod":                     {[]string{"--pod", "shop/till"}, "plaintext"},
		"pod and namespace":       {[]string{"--pod", "cart", "-n", "shop"}, "mtls refused mtls"},
		"from a pod":              {[]string{"--from", "web/front"}, "mtls"},
		"from a namespace":        {[]string{"--from", "shop"}, "plaintext"},
		"to":                      {[]string{"--to", "shop/cart"}, "mtls refused mtls"},
		"to an address":           {[]string{"--to", "10.0.0.1", "--port", "5432"}, "plaintext"},
		"from a range":            {[]string{"--from", "10.0.0.0/29"}, ""},
		"carried":                 {[]string{"--carried", "refused,plaintext"}, "refused plaintext"},
		"since":                   {[]string{"--since", "1h"}, "mtls refused plaintext mtls"},
		"long ago":                {[]string{"--since", "1ns"}, ""},
		"a namespace not a begin": {[]string{"-n", "sho"}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			out, _, err := runSeeing(t.Context(), nil, append([]string{"flows", "--local", "--admin-socket", socket}, tt.args...)...)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, line := range strings.Split(strings.TrimSpace(out), "\n")[1:] {
				if fields := strings.Fields(line); len(fields) > 2 {
					got = append(got, fields[2])
				}
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("got %v, want %q:\n%s", got, tt.want, out)
			}
		})
	}
	out, _, err := runSeeing(t.Context(), nil, "flows", "--local", "--admin-socket", socket, "-o", "yaml", "--port", "5432")
	if err != nil || !strings.HasPrefix(out, "---\n") || !strings.Contains(out, "carried: plaintext\n") || strings.Count(out, "---") != 1 {
		t.Errorf("yaml: %v\n%s", err, out)
	}
	out, _, err = runSeeing(t.Context(), nil, "flows", "--local", "--admin-socket", socket, "-o", "wide", "--carried", "refused")
	for _, want := range []string{"old/legacy (10.0.0.9)", "plaintext to a STRICT port", "SOURCE IDENTITY", "n1"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s%v", want, out, err)
		}
	}
}

func TestFlowsOfAllNodesInOrderOfTime(t *testing.T) {
	early := serveNode(t, &seeingNode{node: "n2", memory: recorded(seenEvent(observe.MTLS, "a/early", "b/x", 1))}, version)
	time.Sleep(2 * time.Millisecond) // the events' own clock
	open := seenEvent(observe.SameNode, "a/late", "b/x", 1)
	open.Open = true
	late := observe.New(observe.Options{})
	late.Flow(open, nil, observe.Peer{})
	open.Open = false
	late.Flow(open, nil, observe.Peer{})
	c := &seeingCluster{sockets: map[string]string{"n1": serveNode(t, &seeingNode{node: "n1", memory: late}, "v0"), "n2": early, "n3": ""}}
	out, notes, err := runSeeing(t.Context(), c, "flows", "-o", "json")
	if codeOf(err) != 1 || !strings.Contains(notes, "node n3 does not answer: agent of node n3: no answer within 1m0s") {
		t.Errorf("code %d, notes %s", codeOf(err), notes)
	}
	if !strings.Contains(notes, "note: the agent is Culvert v0, this is "+version) {
		t.Errorf("versions differ, and nobody is told: %s", notes)
	}
	d := json.NewDecoder(strings.NewReader(out))
	var got []string
	for d.More() {
		var f nodeFlow
		if err := d.Decode(&f); err != nil {
			t.Fatal(err)
		}
		got = append(got, f.Node+" "+f.Source.Workload)
	}
	if strings.Join(got, ", ") != "n2 a/early, n1 a/late" { // the end of a connection stands for its beginning, too
		t.Errorf("got %v", got)
	}
}

func TestFollowing(t *testing.T) {
	memory := recorded(seenEvent(observe.MTLS, "a/first", "b/x", 1))
	c := &seeingCluster{sockets: map[string]string{"n1": serveNode(t, &seeingNode{node: "n1", memory: memory}, version)}}
	flags := &flowsFlags{everyNode: everyNode{reach{open: func(exec.Options) (cluster, error) { return c, nil }}}}
	command := flowsCommand(flags)
	command.SilenceErrors, command.SilenceUsage = true, true
	command.SetArgs([]string{"-f"})
	var out safeBuffer
	command.SetOut(&out)
	command.SetErr(&out)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- command.ExecuteContext(ctx) }()
	wait := func(text string) {
		t.Helper()
		for !strings.Contains(out.String(), text) {
			select {
			case err := <-ended:
				t.Fatalf("ended: %v\n%s", err, out.String())
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	wait("a/first")
	memory.Flow(seenEvent(observe.Refused, "a/second", "b/x", 1), nil, observe.Peer{})
	wait("a/second")
	memory.Flow(seenEvent(observe.Refused, "a/third", "b/x", 1), nil, observe.Peer{})
	wait("a/third")
	cancel()
	if err := <-ended; codeOf(err) != 130 {
		t.Errorf("code %d: %v", codeOf(err), err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, asked := range c.asked[1:] { // what is left running there ends soon
		if !strings.HasSuffix(asked, "--wait 5s") {
			t.Errorf("asked %s", asked)
		}
	}
	if n := strings.Count(out.String(), "a/second"); n != 1 {
		t.Errorf("told %d times:\n%s", n, out.String())
	}
}

// lateCluster has one node, whose agent does not answer at first.
type lateCluster struct {
	seeingCluster
	silent atomic.Bool
}

func (c *lateCluster) Run(ctx context.Context, node string, args ...string) ([]byte, error) {
	if c.silent.Load() {
		return nil, errors.New("agent of node n1: no answer")
	}
	return c.seeingCluster.Run(ctx, node, args...)
}

func TestFollowingANodeThatAnswersLate(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		old  bool // what was before is told
	}{"only what is new": {nil, false}, "and what --since asks for": {[]string{"--since", "1h"}, true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			memory := recorded(seenEvent(observe.MTLS, "a/old", "b/x", 1))
			time.Sleep(5 * time.Millisecond) // the events' own clock
			c := &lateCluster{seeingCluster: seeingCluster{sockets: map[string]string{"n1": serveNode(t, &seeingNode{node: "n1", memory: memory}, version)}}}
			c.silent.Store(true)
			command := flowsCommand(&flowsFlags{everyNode: everyNode{reach{open: func(exec.Options) (cluster, error) { return c, nil }}}})
			command.SilenceErrors, command.SilenceUsage = true, true
			command.SetArgs(append([]string{"-f"}, tc.args...))
			var out safeBuffer
			command.SetOut(&out)
			command.SetErr(&out)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- command.ExecuteContext(ctx) }()
			wait := func(text string) {
				for !strings.Contains(out.String(), text) {
					time.Sleep(5 * time.Millisecond)
				}
			}
			wait("node n1 does not answer")
			memory.Flow(seenEvent(observe.Refused, "a/meanwhile", "b/x", 1), nil, observe.Peer{})
			c.silent.Store(false)
			wait("a/meanwhile")
			memory.Flow(seenEvent(observe.Refused, "a/then", "b/x", 1), nil, observe.Peer{})
			wait("a/then")
			cancel()
			<-ended
			if text := out.String(); strings.Contains(text, "a/old") != tc.old || strings.Count(text, "a/meanwhile") != 1 ||
				strings.Count(text, "node n1 answers again") != 1 {
				t.Error(text)
			}
		})
	}
}

func TestFlowsBadInput(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none.sock")
	socket := serveNode(t, &seeingNode{node: "n1", memory: recorded()}, version)
	failing := serveNode(t, &seeingNode{err: errors.New("it is broken")}, "v0")
	many := &seeingCluster{sockets: map[string]string{}}
	for i := range maxFollowed + 1 {
		many.sockets[strings.Repeat("n", i+1)] = socket
	}
	tests := map[string]struct {
		cluster *seeingCluster
		args    []string
		code    int
		want    string
	}{
		"no agent at all":         {nil, []string{"--admin-socket", none}, 1, "no kubeconfig is set"},
		"no agent here":           {nil, []string{"--admin-socket", none, "--local"}, 1, "no agent's socket on this machine"},
		"an agent that fails":     {nil, []string{"--admin-socket", failing, "--local"}, 1, "(the agent is Culvert v0, this is " + version + "): it is broken"},
		"an older agent":          {&seeingCluster{old: true, sockets: map[string]string{"n1": ""}}, []string{"--node", "n1"}, 1, "older version"},
		"a cluster without nodes": {&seeingCluster{}, []string{"--admin-socket", none}, 1, "no pod in namespace culvert-system is an agent"},
		"too many to follow":      {many, []string{"-f"}, 1, "name one with --node"},
		"output":                  {nil, []string{"-o", "xml"}, 2, `-o "xml"`},
		"carried":                 {nil, []string{"--carried", "tls"}, 2, `--carried "tls": must be one of mtls, same-node`},
		"ambiguous pod":           {nil, []string{"--pod", "cart"}, 2, "name the namespace"},
		"two namespaces":          {nil, []string{"--pod", "a/b", "-n", "c"}, 2, "of no other namespace"},
		"pod and from":            {nil, []string{"--pod", "a/b", "--from", "c"}, 2, "either side"},
		"node and local":          {nil, []string{"--local", "--node", "x"}, 2, "exclude each other"},
		"negative":                {nil, []string{"--since", "-1s"}, 2, "--since"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, notes, err := runSeeing(t.Context(), tt.cluster, append([]string{"flows"}, tt.args...)...)
			text := notes
			if err != nil {
				text += err.Error()
			}
			if codeOf(err) != tt.code || !strings.Contains(text, tt.want) {
				t.Errorf("code %d, %q; want %d, %q", codeOf(err), text, tt.code, tt.want)
			}
		})
	}
}

func TestFlowsDoNotMoveTheCursor(t *testing.T) {
	e := seenEvent(observe.Failed, "a/b", "c/d", 1)
	e.Reason = "\x1b[2J"
	socket := serveNode(t, &seeingNode{node: "n1", memory: recorded(e)}, version)
	out, _, err := runSeeing(t.Context(), nil, "flows", "--local", "--admin-socket", socket)
	if err != nil || strings.Contains(out, "\x1b") {
		t.Errorf("%q, %v", out, err)
	}
}
