package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/source/kube/exec"
)

// fakeNode is an agent that knows what it was told.
type fakeNode struct {
	admin.Node
	certificates *admin.Certificates
	handshake    *admin.Handshake
	hang         chan struct{} // nil: it answers at once
}

func (n *fakeNode) Certificates(ctx context.Context) (*admin.Certificates, error) {
	if n.hang != nil {
		close(n.hang)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	c := *n.certificates
	return &c, nil
}

func (n *fakeNode) Handshake(_ context.Context, from, _ string) (*admin.Handshake, error) {
	if n.handshake == nil || n.handshake.From != from {
		return nil, fmt.Errorf("%s: %w on this node", from, admin.ErrUnknownWorkload)
	}
	h := *n.handshake
	return &h, nil
}

// serveNode puts a fake agent behind a real socket.
func serveNode(t *testing.T, n admin.Node, agentVersion string) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "admin.sock")
	l, err := admin.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- admin.Serve(ctx, l, n, agentVersion, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return socket
}

// fakeCluster has one other node, whose agent is behind a socket: Run runs this same command there.
type fakeCluster struct {
	cluster
	socket string // empty: that agent's Culvert knows no certs
	asked  []string
}

func (f *fakeCluster) NodeOf(_ context.Context, pod string) (string, error) {
	if strings.HasPrefix(pod, "gone/") {
		return "", fmt.Errorf("there is no pod %s: there are a, b", pod)
	}
	return "worker-2", nil
}

func (f *fakeCluster) NamedNodes(context.Context) string { return "agents run on worker-1, worker-2" }

func (f *fakeCluster) Run(ctx context.Context, node string, args ...string) ([]byte, error) {
	f.asked = append(f.asked, node+": "+strings.Join(args, " "))
	if f.socket == "" {
		return nil, &exec.ExitError{Code: 1, Stderr: `culvert: unknown command "certs" for "culvert"`}
	}
	var out, errOut bytes.Buffer
	c := newCertsCommand()
	c.SilenceErrors, c.SilenceUsage = true, true
	c.SetArgs(append([]string{"--admin-socket", f.socket}, args[1:]...))
	c.SetOut(&out)
	c.SetErr(&errOut)
	if err := c.ExecuteContext(ctx); err != nil {
		return out.Bytes(), fmt.Errorf("agent of node %s: %w", node, &exec.ExitError{Code: codeOf(err), Stderr: err.Error()})
	}
	return out.Bytes(), nil
}

// runCerts runs `culvert certs ARGS` with this cluster, nil for a machine without a kubeconfig.
func runCerts(ctx context.Context, f *fakeCluster, args ...string) (stdout, stderr string, err error) {
	var out, errOut bytes.Buffer
	c := certsCommand(func() *asking {
		return &asking{reach: reach{open: func(exec.Options) (cluster, error) {
			if f == nil {
				return nil, errors.New("API server: no kubeconfig is set")
			}
			return f, nil
		}}}
	})
	c.SilenceErrors, c.SilenceUsage = true, true
	understood(c)
	c.SetArgs(args)
	c.SetOut(&out)
	c.SetErr(&errOut)
	err = c.ExecuteContext(ctx)
	return out.String(), errOut.String(), err
}

func identitiesOn(node string, pods ...string) *admin.Certificates {
	all := &admin.Certificates{Node: node, TrustDomain: "cluster.local", Source: "test"}
	for _, pod := range pods {
		namespace, name, _ := strings.Cut(pod, "/")
		all.SVIDs = append(all.SVIDs, admin.SVID{Identity: "spiffe://cluster.local/ns/" + namespace + "/sa/" + name, Workloads: []string{pod},
			Chain: []admin.Certificate{certificate("ab", "CN=i", time.Hour)}})
	}
	return all
}

func TestWhichAgentIsAsked(t *testing.T) {
	here := serveNode(t, &fakeNode{certificates: identitiesOn("worker-1", "shop/cart", "shop/till", "bank/safe")}, version)
	there := serveNode(t, &fakeNode{certificates: identitiesOn("worker-2", "shop/far")}, version)
	none := filepath.Join(t.TempDir(), "none.sock")
	const remote = "worker-2: certs --local -o json"
	tests := map[string]struct {
		args    []string
		cluster *fakeCluster
		want    string // in the output
		wantNot string
		asked   string
		err     string
	}{
		"this node":                      {[]string{"--admin-socket", here}, nil, "sa/safe", "sa/far", "", ""},
		"a pod of this node":             {[]string{"--admin-socket", here, "shop/cart"}, nil, "sa/cart", "sa/till", "", ""},
		"a pod of another node":          {[]string{"--admin-socket", here, "shop/far"}, &fakeCluster{socket: there}, "sa/far", "sa/cart", remote, ""},
		"another node":                   {[]string{"--admin-socket", here, "--node", "worker-2"}, &fakeCluster{socket: there}, "node worker-2", "sa/cart", remote, ""},
		"no agent here":                  {[]string{"--admin-socket", none, "shop/far"}, &fakeCluster{socket: there}, "sa/far", "", remote, ""},
		"no agent and no pod":            {[]string{"--admin-socket", none}, &fakeCluster{}, "", "", "", "say which pod, or which node with --node: agents run on worker-1, worker-2"},
		"no agent and no cluster":        {[]string{"--admin-socket", none}, nil, "", "", "", "none.sock on this machine\nAPI server: no kubeconfig"},
		"no agent, and only the local":   {[]string{"--admin-socket", none, "--local"}, &fakeCluster{}, "", "", "", "there is no agent's socket on this machine"},
		"an unknown pod":                 {[]string{"--admin-socket", here, "gone/pod"}, &fakeCluster{}, "", "", "", "there is no pod gone/pod: there are a, b"},
		"an unknown pod, only the local": {[]string{"--admin-socket", here, "--local", "shop/x"}, nil, "", "", "", "pod shop/x has no identity on node worker-1: it is not enrolled there, or not at all; these are: shop/cart, shop/till"},
		"a pod elsewhere, no cluster":    {[]string{"--admin-socket", here, "shop/far"}, nil, "", "", "", "these are: shop/cart, shop/till\nAPI server: no kubeconfig"},
		"a pod that is not enrolled":     {[]string{"--admin-socket", here, "other/plain"}, &fakeCluster{socket: there}, "", "", remote, "pod other/plain has no identity on node worker-2: it is not enrolled there, or not at all; these are: shop/far"},
		"an agent of an older version":   {[]string{"--node", "worker-2"}, &fakeCluster{}, "", "", remote, "the agent is of an older version than this command"},
		"not a pod":                      {[]string{"cart"}, nil, "", "", "", `"cart": say which pod as NAMESPACE/POD`},
		"not a format":                   {[]string{"-o", "xml"}, nil, "", "", "", "must be one of table, wide, json, yaml, pem"},
		"roots of a table":               {[]string{"--roots"}, nil, "", "", "", "--roots: is for -o pem"},
		"local and a node":               {[]string{"--local", "--node", "n"}, nil, "", "", "", "exclude each other"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, err := runCerts(t.Context(), tt.cluster, tt.args...)
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Fatalf("error %v, want %q", err, tt.err)
			}
			if !strings.Contains(stdout, tt.want) || tt.wantNot != "" && strings.Contains(stdout, tt.wantNot) || stderr != "" {
				t.Errorf("%s%s", stdout, stderr)
			}
			if tt.cluster != nil && strings.Join(tt.cluster.asked, "\n") != tt.asked {
				t.Errorf("asked %q, want %q", tt.cluster.asked, tt.asked)
			}
		})
	}
}

func TestOutputFormats(t *testing.T) {
	all := exampleCertificates()
	socket := serveNode(t, &fakeNode{certificates: all}, version)
	t.Run("json", func(t *testing.T) {
		stdout, _, err := runCerts(t.Context(), nil, "--admin-socket", socket, "-o", "json")
		var got admin.Certificates
		if err := errors.Join(err, json.Unmarshal([]byte(stdout), &got)); err != nil {
			t.Fatal(err)
		}
		if got.Version != version || len(got.SVIDs) != len(all.SVIDs) || got.SVIDs[0].Chain[0].Serial != "a1b2c3" || strings.Contains(stdout, "PRIVATE") {
			t.Errorf("%s", stdout)
		}
	})
	t.Run("pem", func(t *testing.T) {
		for args, blocks := range map[string]int{"shop/cart-1": 1, "shop/cart-1 --roots": 2, "": 4} {
			stdout, _, err := runCerts(t.Context(), nil, append([]string{"--admin-socket", socket, "-o", "pem"}, strings.Fields(args)...)...)
			count := 0
			for block, rest := pem.Decode([]byte(stdout)); block != nil; block, rest = pem.Decode(rest) {
				if count++; block.Type != "CERTIFICATE" {
					t.Errorf("a block %q", block.Type)
				}
			}
			if err != nil || count != blocks {
				t.Errorf("%q: %d blocks, want %d, %v\n%s", args, count, blocks, err, stdout)
			}
		}
	})
	t.Run("pem without a certificate", func(t *testing.T) {
		if _, _, err := runCerts(t.Context(), nil, "--admin-socket", socket, "-o", "pem", "shop/new-1"); err == nil || !strings.Contains(err.Error(), "no certificate yet") {
			t.Errorf("error %v", err)
		}
	})
}

func TestVersionsThatDifferAreNoted(t *testing.T) {
	socket := serveNode(t, &fakeNode{certificates: identitiesOn("n", "a/b")}, "v9.9")
	stdout, stderr, err := runCerts(t.Context(), nil, "--admin-socket", socket)
	if err != nil || !strings.Contains(stderr, "note: the agent is Culvert v9.9, this is "+version) || !strings.Contains(stdout, "a/b") {
		t.Errorf("%v: %s%s", err, stdout, stderr)
	}
}

func TestTenThousandIdentitiesAreShown(t *testing.T) {
	all := identitiesOn("n")
	for i := range 10_000 {
		all.SVIDs = append(all.SVIDs, identitiesOn("n", fmt.Sprintf("ns/pod-%d", i)).SVIDs...)
	}
	socket := serveNode(t, &fakeNode{certificates: all}, version)
	stdout, _, err := runCerts(t.Context(), nil, "--admin-socket", socket)
	if lines := strings.Count(stdout, "\n"); err != nil || lines < 10_000 {
		t.Errorf("%d lines, %v", lines, err)
	}
	_, _, err = runCerts(t.Context(), nil, "--admin-socket", socket, "--local", "ns/none")
	if err == nil || !strings.Contains(err.Error(), "and 9990 more") || len(err.Error()) > 400 {
		t.Errorf("error %v", err)
	}
}

func TestInterruptedWhileTheAgentDoesNotAnswer(t *testing.T) {
	node := &fakeNode{hang: make(chan struct{})}
	socket := serveNode(t, node, version)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-node.hang
		cancel()
	}()
	_, _, err := runCerts(ctx, nil, "--admin-socket", socket)
	if codeOf(err) != 130 || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("error %v, code %d", err, codeOf(err))
	}
}

func TestASocketThatNobodyAnswersOnIsSaidToBeOne(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(socket); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"shop/cart"}, {"verify", "shop/cart", "shop/till"}} {
		_, _, err := runCerts(t.Context(), &fakeCluster{}, append([]string{"--admin-socket", socket}, args...)...)
		if err == nil || !strings.Contains(err.Error(), "the agent of this node is not running") {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestVerify(t *testing.T) {
	root := rootOf(t, "root")
	good := exampleHandshake(root, chainOf(t, root, cartID, -time.Hour, time.Hour), chainOf(t, root, tillID, -time.Hour, time.Hour))
	bad := *good
	bad.Stage, bad.Error = admin.StageConnect, "connection refused"
	accepts, refuses := serveNode(t, &fakeNode{handshake: good}, version), serveNode(t, &fakeNode{handshake: &bad}, version)
	elsewhere := serveNode(t, &fakeNode{}, version)
	pods := []string{"shop/cart-1", "shop/till-1"}
	const remote = "worker-2: certs verify --local -o json -- shop/cart-1 shop/till-1"
	tests := map[string]struct {
		args    []string
		cluster *fakeCluster
		code    int
		want    string // in the output
		asked   string
		err     string
	}{
		"accepted":               {append(pods, "--admin-socket", accepts), nil, 0, "both sides accept each other", "", ""},
		"refused":                {append(pods, "--admin-socket", refuses), nil, 1, "failed at: connect", "", "exit code 1"},
		"refused, as JSON":       {append(pods, "--admin-socket", refuses, "-o", "json"), nil, 1, `"ok": false`, "", "exit code 1"},
		"accepted, as JSON":      {append(pods, "--admin-socket", accepts, "-o", "json"), nil, 0, `"ok": true`, "", ""},
		"another node accepts":   {append(pods, "--admin-socket", elsewhere), &fakeCluster{socket: accepts}, 0, "both sides accept", remote, ""},
		"another node refuses":   {append(pods, "--admin-socket", elsewhere), &fakeCluster{socket: refuses}, 1, "nobody listens on", remote, "exit code 1"},
		"another node knows not": {append(pods, "--admin-socket", elsewhere), &fakeCluster{socket: elsewhere}, 1, "", remote, "shop/cart-1: workload is not known on this node"},
		"unknown, no cluster":    {append(pods, "--admin-socket", elsewhere), nil, 1, "", "", "no kubeconfig"},
		"only the local":         {append(pods, "--admin-socket", elsewhere, "--local"), nil, 1, "", "", "workload is not known on this node"},
		"an older agent":         {append(pods, "--admin-socket", elsewhere), &fakeCluster{}, 1, "", remote, "older version"},
		"not a pod":              {[]string{"a", "b/c"}, nil, 2, "", "", "say which pod as NAMESPACE/POD"},
		"one pod":                {[]string{"a/b"}, nil, 2, "", "", "accepts 2 arg(s)"},
		"not a format":           {append(pods, "-o", "pem"), nil, 2, "", "", "must be one of table, wide, json, yaml"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			stdout, _, err := runCerts(t.Context(), tt.cluster, append([]string{"verify"}, tt.args...)...)
			if codeOf(err) != tt.code || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("code %d, error %v, want %q", codeOf(err), err, tt.err)
			}
			if !strings.Contains(stdout, tt.want) {
				t.Errorf("%s", stdout)
			}
			if tt.cluster != nil && strings.Join(tt.cluster.asked, "\n") != tt.asked {
				t.Errorf("asked %q, want %q", tt.cluster.asked, tt.asked)
			}
		})
	}
}
