package spire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/ca/catest"
	"github.com/culvert-mesh/culvert/agent/identity/spiffe"
)

// node is a node's SPIRE agent with all around it.
type node struct {
	t       *testing.T
	folder  string
	server  *server
	kubelet *kubelet
	agent   *process
}

func newNode(t *testing.T) *node {
	t.Helper()
	programs := build(t)
	folder, err := os.MkdirTemp("", "spire-") // paths of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	for _, name := range []string{"workload", "admin", "broker"} {
		if err := os.Mkdir(filepath.Join(folder, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	n := &node{t: t, folder: folder, kubelet: startKubelet(t), server: startServer(t, programs, folder)}
	n.server.admit(t)
	n.server.register(t, spiffeid.RequireFromString(culvert), 60, nil, fmt.Sprintf("unix:uid:%d", os.Getuid()))
	n.agent = start(t, filepath.Join(programs, "spire-agent"), folder, agentConfig(folder, n.server.port, n.kubelet.port, true))
	n.agent.run("-joinToken", joinToken)
	return n
}

// configure restarts the agent with or without the Broker API.
func (n *node) configure(t *testing.T, broker bool) {
	t.Helper()
	n.agent.stop()
	config := agentConfig(n.folder, n.server.port, n.kubelet.port, broker)
	if err := os.WriteFile(filepath.Join(n.folder, "spire-agent.conf"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	n.agent.run()
}

// client uses one of the APIs, or both.
func (n *node) client(t *testing.T, api string) *spiffe.Client {
	t.Helper()
	o := spiffe.Options{TrustDomain: spiffeid.RequireTrustDomainFromString(domainName), WorkloadAPI: "unix://" + n.folder + "/workload/api.sock",
		Broker: "unix://" + n.folder + "/broker/broker.sock", Admin: "unix://" + n.folder + "/admin/admin.sock",
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)).With("client", api)}
	switch api {
	case "broker":
		o.Admin = ""
	case "delegated":
		o.Broker = ""
	}
	c, err := spiffe.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func (n *node) pod(name string) identity.Workload {
	return n.kubelet.add(identity.Workload{ID: spiffeid.RequireFromString("spiffe://" + domainName + "/ns/shop/sa/" + name),
		Namespace: "shop", ServiceAccount: name, Pod: name + "-0", UID: fmt.Sprintf("%08x-0000-4000-8000-000000000000", len(n.kubelet.pods)+1)})
}

// watched calls Watch again after each error, as the agent does.
type watched struct {
	svids chan *identity.SVID
	mu    sync.Mutex
	errs  []error
}

func watch(t *testing.T, c *spiffe.Client, w identity.Workload) *watched {
	t.Helper()
	x := &watched{svids: make(chan *identity.SVID, 1000)}
	ctx, stop := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		for ctx.Err() == nil {
			err := c.Watch(ctx, w, func(s *identity.SVID) { x.svids <- s })
			x.mu.Lock()
			x.errs = append(x.errs, err)
			x.mu.Unlock()
			pause(ctx, time.Second)
		}
	})
	t.Cleanup(func() { stop(); done.Wait() })
	return x
}

func (x *watched) failed() []error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.errs)
}

func (x *watched) next(t *testing.T) *identity.SVID {
	t.Helper()
	select {
	case s := <-x.svids:
		return s
	case <-time.After(soon):
		t.Fatalf("no SVID; errors %v", x.failed())
		return nil
	}
}

// after waits for another one than s.
func (x *watched) after(t *testing.T, s *identity.SVID) *identity.SVID {
	t.Helper()
	for {
		if next := x.next(t); !bytes.Equal(next.Certificates[0].Raw, s.Certificates[0].Raw) {
			return next
		}
	}
}

func bundles(c *spiffe.Client) string {
	var all []string
	for _, b := range c.Bundles() {
		all = append(all, fmt.Sprintf("%s=%d", b.TrustDomain(), len(b.X509Authorities())))
	}
	return fmt.Sprint(all)
}

func TestRealSPIRE(t *testing.T) {
	n := newNode(t)
	clients := map[string]*spiffe.Client{"broker": n.client(t, "broker"), "delegated": n.client(t, "delegated")}
	t.Run("undisturbed", func(t *testing.T) {
		for api, c := range clients {
			for name, test := range map[string]func(*testing.T, *spiffe.Client, identity.Workload){
				"rotation": n.testRotation, "entry": n.testEntry, "federation": n.testFederation,
			} {
				w := n.pod(api + "-" + name)
				t.Run(api+" "+name, func(t *testing.T) {
					t.Parallel()
					test(t, c, w)
				})
			}
		}
	})
	t.Run("agent restarts", func(t *testing.T) { n.testAgentRestart(t, clients) })
	t.Run("server away", func(t *testing.T) { n.testServerAway(t, clients) })
	t.Run("fallback", n.testFallback)
}

// testRotation has a life of 20 s: SPIRE's agent renews at half of it, counted from ten seconds before the beginning.
func (n *node) testRotation(t *testing.T, c *spiffe.Client, w identity.Workload) {
	n.server.pod(t, w, 20)
	x := watch(t, c, w)
	s := x.next(t)
	begin := time.Now()
	for range 3 {
		next := x.after(t, s)
		if left := time.Until(s.Certificates[0].NotAfter); left < 0 {
			t.Errorf("renewed %s after its end", -left)
		}
		if next.ID != w.ID {
			t.Errorf("SVID of %s", next.ID)
		}
		s = next
	}
	t.Logf("renewed three times in %s; life %s", time.Since(begin).Round(time.Second), s.Certificates[0].NotAfter.Sub(s.Certificates[0].NotBefore))
	if got := bundles(c); !strings.HasPrefix(got, "[cluster.local=1") {
		t.Errorf("roots %s", got)
	}
	if _, err := c.Issue(t.Context(), w); err != nil {
		t.Error(err)
	}
}

// testEntry has an entry come, go and come back.
func (n *node) testEntry(t *testing.T, c *spiffe.Client, w identity.Workload) {
	other := w
	other.ID = spiffeid.RequireFromString(w.ID.String() + "-other")
	n.server.pod(t, other, 600)
	eventually(t, "error that names the other SVID", func() bool {
		_, err := c.Issue(t.Context(), w)
		return errors.Is(err, spiffe.ErrNoEntry) && strings.Contains(err.Error(), "only "+other.ID.String())
	})
	x := watch(t, c, w)
	pause(t.Context(), time.Second)
	remove := n.server.pod(t, w, 600)
	s := x.next(t)
	before := len(x.failed())
	if before > 0 {
		t.Errorf("errors %v", x.failed())
	}
	remove()
	eventually(t, "end of the watch", func() bool { return len(x.failed()) > before })
	if err := x.failed()[before]; !errors.Is(err, spiffe.ErrNoEntry) {
		t.Errorf("error %v", err)
	}
	n.server.pod(t, w, 600)
	x.after(t, s)
}

func (n *node) testFederation(t *testing.T, c *spiffe.Client, w identity.Workload) {
	foreign := w.ServiceAccount + ".example"
	one, two := catest.Root(t, "one"), catest.Root(t, "two")
	n.server.federate(t, foreign, one.Cert)
	remove := n.server.pod(t, w, 600, foreign)
	x := watch(t, c, w)
	s := x.next(t)
	if len(s.FederatesWith) != 1 || s.FederatesWith[0].Name() != foreign {
		t.Errorf("federates with %v", s.FederatesWith)
	}
	eventually(t, "foreign roots", func() bool { return strings.Contains(bundles(c), foreign+"=1") })
	n.server.federate(t, foreign, one.Cert, two.Cert)
	eventually(t, "second foreign root", func() bool { return strings.Contains(bundles(c), foreign+"=2") })
	remove()
	n.server.pod(t, w, 600)
	if s = x.after(t, s); len(s.FederatesWith) != 0 {
		t.Errorf("after the end of federation: %v", s.FederatesWith)
	}
}

func (n *node) testAgentRestart(t *testing.T, clients map[string]*spiffe.Client) {
	var all []*holder
	for api, c := range clients {
		all = append(all, n.hold(t, c, n.pod(api+"-restart"), 20))
	}
	n.agent.stop()
	for _, h := range all {
		eventually(t, "error", func() bool { return len(h.failed()) > h.before })
		if got := bundles(h.client); !strings.HasPrefix(got, "[cluster.local=1") {
			t.Errorf("while the agent is away: roots %s", got)
		}
	}
	n.agent.run()
	begin := time.Now()
	for _, h := range all {
		h.after(t, h.first)
		t.Logf("%s: next SVID %s after the start of the agent", h.client, time.Since(begin).Round(100*time.Millisecond))
	}
}

// testServerAway stops the server for longer than a life of 20 s, and for longer than the 15 s after which one of 40 s is
// renewed.
func (n *node) testServerAway(t *testing.T, clients map[string]*spiffe.Client) {
	var short, long []*holder
	for api, c := range clients {
		short = append(short, n.hold(t, c, n.pod(api+"-short"), 20))
		long = append(long, n.hold(t, c, n.pod(api+"-long"), 40))
	}
	n.server.stop()
	pause(t.Context(), 22*time.Second)
	for _, h := range append(short, long...) {
		if errs := h.failed(); len(errs) > h.before {
			t.Errorf("errors %v", errs[h.before:])
		}
	}
	n.server.run()
	for _, h := range long {
		h.after(t, h.first)
		if left := time.Until(h.first.Certificates[0].NotAfter); left < 0 {
			t.Errorf("renewed %s after its end", -left)
		}
	}
	for _, h := range short {
		for s := h.first; time.Until(s.Certificates[0].NotAfter) < 0; {
			s = h.after(t, s)
		}
	}
}

// holder is a watch that has its first SVID.
type holder struct {
	*watched
	client *spiffe.Client
	first  *identity.SVID
	before int // errors: SPIRE's agent does not know of a pod at once
}

func (n *node) hold(t *testing.T, c *spiffe.Client, w identity.Workload, life int32) *holder {
	t.Helper()
	n.server.pod(t, w, life)
	h := &holder{watched: watch(t, c, w), client: c}
	h.first = h.next(t)
	h.before = len(h.failed())
	return h
}

// testFallback has an agent whose Broker API is switched off and on again.
func (n *node) testFallback(t *testing.T) {
	c := n.client(t, "both")
	w := n.pod("fallback")
	n.server.pod(t, w, 20)
	x := watch(t, c, w)
	s := x.next(t)
	if !strings.Contains(c.String(), "Broker") {
		t.Errorf("SVIDs come from %s", c)
	}
	n.configure(t, false)
	eventually(t, "delegated", func() bool { return strings.Contains(c.String(), "Delegated") })
	s = x.after(t, s)
	n.configure(t, true)
	eventually(t, "broker", func() bool { return strings.Contains(c.String(), "Broker") })
	x.after(t, s)
}
