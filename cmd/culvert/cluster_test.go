package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/source/kube/exec"
)

var update = flag.Bool("update", false, "write testdata anew")

// goldenFile compares what a person reads with testdata/name.
func goldenFile(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s (go test -update writes it anew):\n%s\nwant:\n%s", path, got, want)
	}
}

// answeringNode is an agent that knows what it was told.
type answeringNode struct {
	admin.Node // what a test does not ask
	status     *admin.Status
	pods       map[string]*admin.PodDescription
	services   map[string]*admin.ServiceDescription
	verdict    *admin.Verdict
	asked      chan admin.Question // takes some
	foreign    bool                // it was asked for programs of others
	hang       bool
}

func (n *answeringNode) Status(ctx context.Context, foreign bool) (*admin.Status, error) {
	if n.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	n.foreign = foreign
	s := *n.status
	return &s, nil
}

func (n *answeringNode) DescribePod(_ context.Context, pod string) (*admin.PodDescription, error) {
	if d := n.pods[pod]; d != nil {
		c := *d
		return &c, nil
	}
	return nil, fmt.Errorf("pod %s is not known; there are shop/cart-1: %w", pod, admin.ErrUnknownWorkload)
}

func (n *answeringNode) DescribeService(_ context.Context, service string) (*admin.ServiceDescription, error) {
	if d := n.services[service]; d != nil {
		c := *d
		return &c, nil
	}
	return nil, fmt.Errorf("Service %s is not known: %w", service, admin.ErrUnknownWorkload)
}

func (n *answeringNode) Can(_ context.Context, q admin.Question) (*admin.Verdict, error) {
	if n.verdict == nil || q.From != admin.Outside && q.From != n.verdict.From {
		return nil, fmt.Errorf("pod %s is on node there, not on here: %w", q.From, admin.ErrUnknownWorkload)
	}
	select {
	case n.asked <- q:
	default:
	}
	v := *n.verdict
	return &v, nil
}

// fakeFleet has nodes with agents behind sockets: Run runs this same command there.
type fakeFleet struct {
	nodes    []string
	nodesErr error
	agents   map[string]string // what is the matter with each
	sockets  map[string]string // by node; empty: that agent's Culvert is an older one
	pods     map[string]string // node by pod

	mu    sync.Mutex
	asked []string
}

func (f *fakeFleet) NodeOf(_ context.Context, pod string) (string, error) {
	if node, ok := f.pods[pod]; ok {
		return node, nil
	}
	return "", fmt.Errorf("there is no pod %s: there are a, b", pod)
}

func (f *fakeFleet) NamedNodes(context.Context) string { return "agents run on nowhere" }

func (f *fakeFleet) AllNodes(context.Context) ([]string, error) {
	return slices.Clone(f.nodes), f.nodesErr
}

func (f *fakeFleet) AgentNodes(context.Context) (map[string]string, error) {
	return maps.Clone(f.agents), nil
}

func (f *fakeFleet) PodsNamed(_ context.Context, name string) ([]string, error) {
	var found []string
	for pod := range f.pods {
		if strings.HasSuffix(pod, "/"+name) {
			found = append(found, pod)
		}
	}
	slices.Sort(found)
	return found, nil
}

func (f *fakeFleet) PodsIn(_ context.Context, namespace string) ([]string, error) {
	var found []string
	for pod := range f.pods {
		if namespace == "" || strings.HasPrefix(pod, namespace+"/") {
			found = append(found, pod)
		}
	}
	return found, nil
}

func (f *fakeFleet) Run(ctx context.Context, node string, args ...string) ([]byte, error) {
	f.mu.Lock()
	f.asked = append(f.asked, node+": "+strings.Join(args, " "))
	f.mu.Unlock()
	if f.sockets[node] == "" {
		return nil, &exec.ExitError{Code: 1, Stderr: fmt.Sprintf("culvert: unknown command %q for \"culvert\"", args[0])}
	}
	args = slices.Clone(args)
	at := slices.Index(args, "--local")
	stdout, stderr, err := runAnswers(ctx, nil, slices.Insert(args, at, "--admin-socket", f.sockets[node])...)
	if err != nil {
		return []byte(stdout), fmt.Errorf("agent of node %s: %w", node, &exec.ExitError{Code: codeOf(err), Stderr: stderr + err.Error()})
	}
	return []byte(stdout), nil
}

// runAnswers runs `culvert ARGS` with this fleet, nil for a machine without a kubeconfig.
func runAnswers(ctx context.Context, f *fakeFleet, args ...string) (stdout, stderr string, err error) {
	there := reach{open: func(exec.Options) (cluster, error) {
		if f == nil {
			return nil, errors.New("API server: no kubeconfig is set")
		}
		return f, nil
	}}
	asks := func() *asking { return &asking{reach: there} }
	var out, errOut bytes.Buffer
	root := &cobra.Command{Use: "culvert", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(statusCommand(&everyNode{there}), describeCommand(asks), canCommand(asks()), certsCommand(asks))
	understood(root)
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&errOut)
	err = root.ExecuteContext(ctx)
	return out.String(), errOut.String(), err
}

// rendered is what a person sees on no terminal.
func rendered(wide bool, show func(*screen)) string {
	s := &screen{wide: wide}
	show(s)
	return s.text.String()
}

func exampleTime() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

func TestNames(t *testing.T) {
	for _, tc := range []struct{ namespace, arg, want, err string }{
		{"", "shop/cart", "shop/cart", ""}, {"", "cart", "cart", ""}, {"shop", "cart", "shop/cart", ""}, {"shop", "shop/cart", "shop/cart", ""},
		{"old", "shop/cart", "", "not in namespace old"}, {"", "", "", "NAMESPACE/NAME"}, {"", "/cart", "", "NAMESPACE/NAME"},
		{"", "shop/", "", "NAMESPACE/NAME"}, {"", "a/b/c", "", "NAMESPACE/NAME"},
	} {
		got, err := (&asking{namespace: tc.namespace}).named(tc.arg)
		if got != tc.want || (err == nil) != (tc.err == "") || err != nil && (!strings.Contains(err.Error(), tc.err) || codeOf(err) != exitUsage) {
			t.Errorf("%q in %q: %q, %v", tc.arg, tc.namespace, got, err)
		}
	}
}

func TestWhichAgentIsAskedAboutAPod(t *testing.T) {
	describes := func(node, pod string) *answeringNode {
		return &answeringNode{pods: map[string]*admin.PodDescription{pod: {Node: node, Pod: pod}},
			services: map[string]*admin.ServiceDescription{"shop/cart": {Node: node, Service: "shop/cart"}}}
	}
	here, there := serveNode(t, describes("here", "shop/cart-1"), version), serveNode(t, describes("there", "shop/till-1"), version)
	old := serveNode(t, describes("here", "shop/cart-1"), "v0.9")
	none := filepath.Join(t.TempDir(), "none.sock")
	newFleet := func() *fakeFleet {
		return &fakeFleet{agents: map[string]string{"there": "", "ancient": "", "broken": "it is Pending"}, sockets: map[string]string{"there": there},
			pods: map[string]string{"shop/till-1": "there", "old/till-2": "there", "shop/till-2": "there", "old/x": "ancient", "bank/till-1x": "there"}}
	}
	for name, tc := range map[string]struct {
		args  []string
		fleet *fakeFleet
		want  string
		err   string
		code  int
		note  string
	}{
		"here":                          {[]string{"pod", "shop/cart-1", "--admin-socket", here}, nil, "node  here", "", 0, ""},
		"here, by -n":                   {[]string{"pod", "cart-1", "-n", "shop", "--admin-socket", here}, nil, "node  here", "", 0, ""},
		"on another node":               {[]string{"pod", "shop/till-1", "--admin-socket", here}, newFleet(), "node  there", "", 0, ""},
		"off the cluster":               {[]string{"pod", "shop/till-1", "--admin-socket", none}, newFleet(), "node  there", "", 0, ""},
		"named node":                    {[]string{"pod", "shop/till-1", "--node", "there"}, newFleet(), "node  there", "", 0, ""},
		"name in several namespaces":    {[]string{"pod", "till-2", "--admin-socket", none}, newFleet(), "", "found in several namespaces; say which of old/till-2, shop/till-2", 1, ""},
		"name that nobody has":          {[]string{"pod", "nobody", "--admin-socket", none}, newFleet(), "", `pods "nobody" not found in any namespace`, 1, ""},
		"unknown":                       {[]string{"pod", "shop/nobody", "--admin-socket", none}, newFleet(), "", "there is no pod shop/nobody: there are a, b", 1, ""},
		"unknown, only the local":       {[]string{"pod", "shop/nobody", "--admin-socket", here, "--local"}, newFleet(), "", "not known; there are shop/cart-1", 1, ""},
		"unknown, without a cluster":    {[]string{"pod", "shop/nobody", "--admin-socket", here}, nil, "", "there are shop/cart-1: workload is not known\nAPI server: no kubeconfig", 1, ""},
		"nobody to ask":                 {[]string{"pod", "shop/till-1", "--admin-socket", none}, nil, "", "none.sock on this machine\nAPI server", 1, ""},
		"an agent of an older version":  {[]string{"pod", "old/x", "--admin-socket", none}, newFleet(), "", "the agent is of an older version than this command", 1, ""},
		"an agent of another version":   {[]string{"pod", "shop/cart-1", "--admin-socket", old}, nil, "node  here", "", 0, "note: the agent is Culvert v0.9"},
		"Service, here":                 {[]string{"service", "shop/cart", "--admin-socket", here}, nil, "as seen by  here", "", 0, ""},
		"Service, any agent that works": {[]string{"svc", "shop/cart", "--admin-socket", none}, &fakeFleet{agents: map[string]string{"a": "it is Pending", "there": ""}, sockets: map[string]string{"there": there}}, "as seen by  there", "", 0, ""},
		"Service, no agent that works":  {[]string{"svc", "shop/cart", "--admin-socket", none}, &fakeFleet{agents: map[string]string{"a": "it is Pending"}}, "", "no agent runs: agents run on nowhere", 1, ""},
		"Service, unknown":              {[]string{"svc", "shop/kart", "--admin-socket", here}, newFleet(), "", "Service shop/kart is not known", 1, ""},
		"local and a node":              {[]string{"pod", "a/b", "--local", "--node", "n"}, nil, "", "exclude each other", 2, ""},
		"not a format":                  {[]string{"pod", "a/b", "-o", "pem"}, nil, "", "must be one of table, wide, json, yaml", 2, ""},
		"two pods":                      {[]string{"pod", "a/b", "c/d"}, nil, "", "accepts 1 arg(s), received 2; see culvert describe pod --help", 2, ""},
		"unknown flag":                  {[]string{"pod", "a/b", "--bogus"}, nil, "", "unknown flag", 2, ""},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, err := runAnswers(t.Context(), tc.fleet, append([]string{"describe"}, tc.args...)...)
			if codeOf(err) != tc.code || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Fatalf("code %d, error %v, want %d, %q", codeOf(err), err, tc.code, tc.err)
			}
			if !strings.Contains(stdout, tc.want) || !strings.Contains(stderr, tc.note) {
				t.Errorf("%s%s", stdout, stderr)
			}
		})
	}
}
