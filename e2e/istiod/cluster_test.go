package istiod

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	authentication "k8s.io/api/authentication/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/istio"
	"github.com/culvert-mesh/culvert/agent/source/kube/apitest"
)

const (
	istioSystem  = "istio-system"
	system       = "culvert-system"
	agentAccount = "culvert-agent"
	shop         = "shop"
)

// cluster is a real API server with the pods of two nodes, which no kubelet runs.
type cluster struct {
	*apitest.Server
	admin          kubernetes.Interface
	agentA, agentB *core.Pod
	stranger       *core.Pod // on node a, of an account that istiod does not trust
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	s := apitest.Start(t, nil)
	c := &cluster{Server: s, admin: s.Client()}
	for _, name := range []string{istioSystem, system, shop} {
		if _, err := c.admin.CoreV1().Namespaces().Create(t.Context(), &core.Namespace{ObjectMeta: meta.ObjectMeta{Name: name}}, meta.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	c.agentA = c.pod(t, system, "agent-a", agentAccount, "node-a")
	c.agentB = c.pod(t, system, "agent-b", agentAccount, "node-b")
	c.stranger = c.pod(t, system, "stranger", "stranger", "node-a")
	c.pod(t, shop, "cart", "cart", "node-a")
	c.pod(t, shop, "till", "till", "node-b")
	return c
}

func (c *cluster) pod(t *testing.T, namespace, name, account, node string) *core.Pod {
	t.Helper()
	_, err := c.admin.CoreV1().ServiceAccounts(namespace).Create(t.Context(),
		&core.ServiceAccount{ObjectMeta: meta.ObjectMeta{Name: account}}, meta.CreateOptions{})
	if err != nil && !errors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	p, err := c.admin.CoreV1().Pods(namespace).Create(t.Context(), &core.Pod{
		ObjectMeta: meta.ObjectMeta{Name: name},
		Spec: core.PodSpec{NodeName: node, ServiceAccountName: account,
			Containers: []core.Container{{Name: "main", Image: "none"}}},
	}, meta.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// token is asked for as the kubelet asks for those that a pod mounts.
func (c *cluster) token(t *testing.T, audience string, pod *core.Pod) string {
	t.Helper()
	r, err := c.admin.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(t.Context(), pod.Spec.ServiceAccountName,
		&authentication.TokenRequest{Spec: authentication.TokenRequestSpec{Audiences: []string{audience},
			BoundObjectRef: &authentication.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}}},
		meta.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r.Status.Token
}

// published waits for a ConfigMap with roots, which CAs make for those who mount it.
func (c *cluster) published(t *testing.T, namespace, name string) []byte {
	t.Helper()
	var roots string
	eventually(t, "ConfigMap "+name+" in "+namespace, func() bool {
		m, err := c.admin.CoreV1().ConfigMaps(namespace).Get(t.Context(), name, meta.GetOptions{})
		if err != nil {
			return false
		}
		roots = m.Data["root-cert.pem"]
		return roots != ""
	})
	return []byte(roots)
}

func domain() spiffeid.TrustDomain { return spiffeid.RequireTrustDomainFromString("cluster.local") }

func workload(namespace, account string) identity.Workload {
	return identity.Workload{ID: spiffeid.RequireFromSegments(domain(), "ns", namespace, "sa", account)}
}

// agent is Culvert's client with what the kubelet mounts into an agent's pod.
func agent(t *testing.T, token string, roots []byte, o istio.Options) *istio.Client {
	t.Helper()
	folder := t.TempDir()
	o.TokenFile, o.RootsFile = write(t, folder, "token", []byte(token)), write(t, folder, "root-cert.pem", roots)
	o.TrustDomain = domain()
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c, err := istio.New(o)
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

func write(t *testing.T, folder, name string, text []byte) string {
	t.Helper()
	file := filepath.Join(folder, name)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("still not so after 30 s: %s", what)
}

// wants checks the text of an error.
func wants(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error %v, want %q in it", err, part)
		}
	}
}
