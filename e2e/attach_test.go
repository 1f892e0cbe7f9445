package e2e

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/agent"
	"github.com/culvert-mesh/culvert/agent/datapath"
	"github.com/culvert-mesh/culvert/agent/enroll"
	"github.com/culvert-mesh/culvert/agent/enroll/cni"
	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/e2e/lab"
	"github.com/culvert-mesh/culvert/policy"
)

// published is a source that says what the test tells it to.
type published chan *source.Snapshot

func (p published) Run(ctx context.Context, publish func(*source.Snapshot)) error {
	for {
		select {
		case s := <-p:
			publish(s)
		case <-ctx.Done():
			return nil
		}
	}
}

// sandboxes answers where the pod of a UID is, as a container runtime would.
type sandboxes struct {
	mu  sync.Mutex
	all map[string]sandbox
}

type sandbox struct {
	id  string
	pod *lab.Pod
}

func (s *sandboxes) set(uid, id string, pod *lab.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[uid] = sandbox{id, pod}
}

func (s *sandboxes) Locate(_ context.Context, uid string) (*os.File, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found, ok := s.all[uid]
	if !ok {
		return nil, "", enroll.ErrNotRunning
	}
	f, err := os.Open(found.pod.NetnsPath)
	return f, found.id, err
}

func (s *sandboxes) Current(context.Context) (map[string]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := map[string]string{}
	for uid, found := range s.all {
		ids[uid] = found.id
	}
	return ids, nil
}

// told keeps what the agent reports of pods.
type told struct {
	mu   sync.Mutex
	last map[string]string
}

func (r *told) set(p *source.Pod, what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last[p.Ref()] = what
}

func (r *told) of(ref string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last[ref]
}

func (r *told) Enrolled(p *source.Pod)                { r.set(p, "enrolled") }
func (r *told) NotEnrolled(p *source.Pod, why string) { r.set(p, "not enrolled: "+why) }
func (r *told) Unenrolled(p *source.Pod)              { r.set(p, "unenrolled") }

// attaching is a node with two pods on which an agent runs that knows pods as on Kubernetes: from a source that lists
// them, and from a runtime that announces them.
type attaching struct {
	t         *testing.T
	node      *lab.Node
	pod, twin *lab.Pod
	index     *source.Index
	source    published
	runtime   *sandboxes
	told      *told
	socket    string
	retiring  chan struct{}
	stop      func()
}

func startAttaching(t *testing.T) *attaching {
	t.Helper()
	l, err := lab.New(t.Context(), lab.Options{Prefix: "culvert-attach", RunDir: filepath.Join(t.TempDir(), "lab")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	a := &attaching{t: t, index: source.NewIndex("node"), retiring: make(chan struct{}), source: make(published), runtime: &sandboxes{all: map[string]sandbox{}}, told: &told{last: map[string]string{}}}
	if a.node, err = l.AddNode("node"); err != nil {
		t.Fatal(err)
	}
	for _, p := range []struct {
		pod  **lab.Pod
		name string
	}{{&a.pod, "pod"}, {&a.twin, "twin"}} {
		if *p.pod, err = l.AddPod(a.node, "n", p.name); err != nil {
			t.Fatal(err)
		}
	}
	a.socket = filepath.Join(a.node.Dir, "cni.sock")
	a.startAgent()
	t.Cleanup(func() {
		a.stop()
		if err := datapath.Uninstall(a.datapath()); err != nil {
			t.Error(err)
		}
	})
	a.ambient()
	a.strict()
	return a
}

func (a *attaching) ambient() {
	a.index.SetNamespace(&source.Namespace{Name: "n", Labels: map[string]string{"istio.io/dataplane-mode": "ambient"}})
}

func (a *attaching) strict() {
	a.index.SetPolicies("n", []policy.PeerAuthentication{{Namespace: "n", Name: "strict", Mode: policy.Strict}})
}

// restart is an agent that finds what its predecessor left, and a source that begins anew.
func (a *attaching) restart() {
	a.t.Helper()
	a.stop()
	a.mustRefuse(a.pod)
	a.told.set(&source.Pod{Namespace: "n", Name: "pod"}, "")
	a.index = source.NewIndex("node")
	a.ambient()
	a.strict()
	a.startAgent()
}

func (a *attaching) datapath() datapath.Options {
	return datapath.Options{BPFFS: a.node.BPFFS, Cgroup: a.node.Cgroup, Logger: slog.New(slog.DiscardHandler)}
}

func (a *attaching) startAgent() {
	a.t.Helper()
	domain := spiffeid.RequireTrustDomainFromString("cluster.local")
	authority, err := ca.New(domain)
	if err != nil {
		a.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- agent.Run(ctx, agent.Options{
			Node: "node", Source: a.source, TrustDomain: domain, Datapath: a.datapath(), TunnelUID: 61508,
			Issuer:      &identity.InProcess{Authority: authority, Life: time.Hour},
			ControlPath: filepath.Join(a.node.Dir, "control.sock"), CNIPath: a.socket,
			Retiring: a.retiring, Patience: time.Minute, Locator: a.runtime, Reporter: a.told, Logger: slog.New(slog.DiscardHandler),
		})
	}()
	a.stop = func() {
		cancel()
		if err := <-done; err != nil {
			a.t.Error("agent: ", err)
		}
		a.stop = func() {}
	}
}

// list makes the source say that there is such a pod.
func (a *attaching) list(uid string, addresses ...netip.Addr) {
	a.index.SetPod(&source.Pod{Namespace: "n", Name: "pod", UID: uid, Node: "node", ServiceAccount: "default",
		Redirection: source.RedirectionAbsent, Addresses: addresses})
	a.publish()
}

func (a *attaching) publish() {
	if s := a.index.Snapshot(); s != nil {
		a.source <- s
	}
}

func (a *attaching) call(timeout time.Duration, command, uid, container string, in *lab.Pod) (*cni.Response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	r := &cni.Request{Command: command, PodNamespace: "n", PodName: "pod", PodUID: uid, ContainerID: container, IfName: "eth0"}
	if in == nil {
		return cni.Call(ctx, a.socket, r, nil)
	}
	netns, err := os.Open(in.NetnsPath)
	if err != nil {
		a.t.Fatal(err)
	}
	defer netns.Close()
	r.NetnsPath, r.Addresses = in.NetnsPath, []netip.Addr{in.IP4, in.IP6}
	return cni.Call(ctx, a.socket, r, netns)
}

// mustEnroll adds the pod, and checks that its first packet is covered.
func (a *attaching) mustEnroll(uid, container string, in *lab.Pod) {
	a.t.Helper()
	answer, err := a.call(10*time.Second, cni.Add, uid, container, in)
	if err != nil || answer.Error != nil || !answer.Enrolled {
		a.t.Fatalf("ADD: %+v, %v", answer, err)
	}
	a.mustRefuse(in)
}

// open makes a connection in plaintext from the node to a server in the pod.
func (a *attaching) open(to *lab.Pod) error {
	var l net.Listener
	if err := to.Do(func() (err error) {
		config := net.ListenConfig{}
		config.SetMultipathTCP(false)
		l, err = config.Listen(context.Background(), "tcp4", ":8080")
		return err
	}); err != nil {
		a.t.Fatal(err)
	}
	defer l.Close()
	var c net.Conn
	err := a.node.Do(func() (err error) {
		c, err = net.DialTimeout("tcp4", netip.AddrPortFrom(to.IP4, 8080).String(), 3*time.Second)
		return err
	})
	if err == nil {
		c.Close()
	}
	return err
}

func (a *attaching) mustRefuse(pod *lab.Pod) {
	a.t.Helper()
	if err := a.open(pod); !errors.Is(err, unix.ECONNREFUSED) {
		a.t.Fatalf("plaintext to a STRICT pod: %v, want connection refused", err)
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within 5 s: ", what)
		}
	}
}
