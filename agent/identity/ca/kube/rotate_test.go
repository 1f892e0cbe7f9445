package kube_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/kube"
	"github.com/culvert-mesh/culvert/agent/identity/ca/rotation"
	"github.com/culvert-mesh/culvert/agent/identity/ca/server"
	"github.com/culvert-mesh/culvert/agent/identity/istio"
)

const testOverlap = 3 * time.Second

// seconds are lives with which a rotation takes seconds.
func seconds(identity string) func(*server.Options) {
	return func(o *server.Options) {
		o.SVIDLife, o.IntermediateLife, o.RootLife, o.RootOverlap = 3*time.Second, 10*time.Second, 2*time.Minute, testOverlap
		o.LeaseDuration, o.Identity = 3*time.Second, identity
	}
}

// wire is a connection to the API server that can be cut.
type wire struct {
	http.RoundTripper
	cut atomic.Bool
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	if w.cut.Load() {
		return nil, errors.New("cut")
	}
	return w.RoundTripper.RoundTrip(r)
}

// crew are replicas under load: each is asked again and again for a certificate, as an agent does that trusts what the
// ConfigMap holds.
type crew struct {
	*cluster
	folder string
	mesh   kube.Mesh
	issued atomic.Int64

	mu      sync.Mutex
	members map[string]*member
	made    int
}

type member struct {
	*replica
	wire  *wire
	agent *istio.Client
	dead  atomic.Bool
	asked chan struct{} // closed when nobody asks any more
}

func (c *crew) join(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	c.made++
	name := fmt.Sprint("replica-", c.made)
	c.mu.Unlock()
	w := &wire{}
	config := c.Config("token-of-the-ca")
	config.Wrap(func(rt http.RoundTripper) http.RoundTripper { w.RoundTripper = rt; return w })
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	m := &member{replica: startReplica(t, client, seconds(name)), wire: w, asked: make(chan struct{})}
	m.ready(t)
	m.agent = agentOf(t, m.service, c.folder)
	c.mu.Lock()
	c.members[name] = m
	c.mu.Unlock()
	go c.ask(t, m)
	t.Cleanup(func() { m.dead.Store(true); <-m.asked })
}

func (c *crew) ask(t *testing.T, m *member) {
	defer close(m.asked)
	for !m.dead.Load() {
		svid, err := m.agent.Issue(t.Context(), identity.Workload{ID: id("shop", "cart")})
		if err != nil {
			if !m.dead.Load() && t.Context().Err() == nil {
				t.Errorf("no certificate: %v", err)
			}
			return
		}
		c.mesh.Issue(svid.Certificates)
		c.issued.Add(1)
		time.Sleep(50 * time.Millisecond)
	}
}

// kill ends the replica that leads without its giving back the Lease, and has another join.
func (c *crew) kill(t *testing.T) {
	t.Helper()
	lease, err := c.admin.CoordinationV1().Leases(system).Get(t.Context(), kube.LeaseName, meta.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	leader := c.members[*lease.Spec.HolderIdentity]
	delete(c.members, *lease.Spec.HolderIdentity)
	c.mu.Unlock()
	if leader == nil {
		t.Fatalf("%s leads, who is dead", *lease.Spec.HolderIdentity)
	}
	leader.dead.Store(true)
	leader.wire.cut.Store(true)
	<-leader.asked
	leader.stop()
	c.join(t)
}

func (c *crew) status(t *testing.T) *kube.Status {
	t.Helper()
	s, err := kube.ReadStatus(t.Context(), kube.FromInterface(c.admin), system)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (c *crew) await(t *testing.T, holds func(*kube.Status) bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if holds(c.status(t)) {
			return
		}
	}
	t.Fatalf("still not so after a minute: %+v", c.status(t))
}

func inPhase(p rotation.Phase) func(*kube.Status) bool {
	return func(s *kube.Status) bool { return s.Phase == p }
}

func TestRotationUnderLoadWithLeadersThatDie(t *testing.T) {
	c := &crew{cluster: newCluster(t), folder: t.TempDir(), members: map[string]*member{}}
	agent := c.pod(t, system, "agent", "culvert-agent", "node-a", onHost)
	c.pod(t, "shop", "cart", "cart", "node-a")
	write(t, filepath.Join(c.folder, "token"), []byte(c.token(t, "culvert-agent", "culvert-ca", agent)))
	stop := c.mount(t)
	defer stop()
	for range 3 {
		c.join(t)
	}
	client := kube.FromInterface(c.admin)
	rotate := func(note string) {
		t.Helper()
		if err := kube.Rotate(t.Context(), client, system, note, time.Now()); err != nil {
			t.Fatal(err)
		}
	}

	before := c.status(t)
	rotate(kube.RotateIntermediateNote)
	rotate(kube.RotateIntermediateNote)
	c.await(t, func(s *kube.Status) bool { return s.Intermediate.Serial != before.Intermediate.Serial })
	if now := c.status(t); now.Roots[0].Serial != before.Roots[0].Serial || now.Phase != rotation.Stable {
		t.Fatalf("a new intermediate was asked for, and now: %+v", now)
	}

	rotate(kube.RotateRootNote)
	c.await(t, inPhase(rotation.Announce))
	rotate(kube.RotateRootNote) // asked again for the root that is on its way out
	c.kill(t)
	c.await(t, inPhase(rotation.Retire))
	if now := c.status(t); len(now.Roots) != 2 || now.Roots[1].Role != "old" || now.Roots[1].Serial != before.Roots[0].Serial {
		t.Fatalf("after the switch: %+v", now)
	}
	c.kill(t)
	c.await(t, inPhase(rotation.Stable))
	c.kill(t)
	after := c.status(t)
	if len(after.Roots) != 1 || after.Roots[0].Serial == before.Roots[0].Serial {
		t.Fatalf("after the rotation: %+v", after)
	}
	time.Sleep(2 * testOverlap)
	if again := c.status(t); again.Phase != rotation.Stable || again.Roots[0].Serial != after.Roots[0].Serial {
		t.Fatalf("asking twice rotated twice: %+v", again)
	}
	stop()
	if n := c.mesh.Bundles(); n != 4 {
		t.Errorf("%d bundles seen, want four: old; old,new; new,old; new", n)
	}
	c.mesh.Check(t, testOverlap-500*time.Millisecond)
	t.Logf("%d certificates asked for over TLS, all issued; %d replicas, 3 leaders killed", c.issued.Load(), c.made)
}

// mount keeps the agents' file of roots as the ConfigMap is, and notes what is in it.
func (c *crew) mount(t *testing.T) (stop func()) {
	file := filepath.Join(c.folder, "roots")
	over, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for last := ""; ; {
			m, err := c.admin.CoreV1().ConfigMaps(system).Get(t.Context(), kube.ConfigMapName, meta.GetOptions{})
			if text := m.Data[ca.RootsName]; err == nil && text != last {
				c.mesh.Publish(t, []byte(text))
				if err := errors.Join(os.WriteFile(file+".new", []byte(text), 0o600), os.Rename(file+".new", file)); err != nil {
					t.Error(err)
				}
				last = text
			}
			select {
			case <-over:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	return sync.OnceFunc(func() { close(over); <-ended })
}
