package kube_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	authentication "k8s.io/api/authentication/v1"
	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/kube"
	"github.com/culvert-mesh/culvert/agent/identity/ca/server"
	"github.com/culvert-mesh/culvert/agent/source/kube/apitest"
)

const system = "culvert-system"

// cluster is a real API server, in which a CA may do what its ClusterRole and Role allow.
type cluster struct {
	*apitest.Server
	admin kubernetes.Interface
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	const user = "culvert-ca"
	s := apitest.Start(t, map[string]string{"token-of-the-ca": user})
	c := &cluster{s, s.Client()}
	for _, namespace := range []string{system, "shop"} {
		must(t)(c.admin.CoreV1().Namespaces().Create(t.Context(), &core.Namespace{ObjectMeta: meta.ObjectMeta{Name: namespace}}, meta.CreateOptions{}))
	}
	for _, account := range []string{system + "/culvert-agent", system + "/prometheus", "shop/cart", "shop/till", "shop/kubeproxy"} {
		namespace, name, _ := strings.Cut(account, "/")
		must(t)(c.admin.CoreV1().ServiceAccounts(namespace).Create(t.Context(),
			&core.ServiceAccount{ObjectMeta: meta.ObjectMeta{Name: name}}, meta.CreateOptions{}))
	}
	c.grant(t, user)
	return c
}

// grant gives the CA exactly what the manifests are to give it.
func (c *cluster) grant(t *testing.T, user string) {
	t.Helper()
	subject := []rbac.Subject{{Kind: rbac.UserKind, APIGroup: rbac.GroupName, Name: user}}
	must(t)(c.admin.RbacV1().ClusterRoles().Create(t.Context(), &rbac.ClusterRole{ObjectMeta: meta.ObjectMeta{Name: user}, Rules: []rbac.PolicyRule{
		{APIGroups: []string{authentication.GroupName}, Resources: []string{"tokenreviews"}, Verbs: []string{"create"}},
		{APIGroups: []string{""}, Resources: []string{"pods", "namespaces"}, Verbs: []string{"list", "watch"}},
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"create"}},
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{kube.ConfigMapName}, Verbs: []string{"list", "watch", "patch"}},
		{APIGroups: []string{rbac.GroupName}, Resources: []string{"clusterroles"}, ResourceNames: []string{kube.ClusterRoleName}, Verbs: []string{"get"}},
	}}, meta.CreateOptions{}))
	must(t)(c.admin.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbac.ClusterRoleBinding{ObjectMeta: meta.ObjectMeta{Name: user},
		RoleRef: rbac.RoleRef{APIGroup: rbac.GroupName, Kind: "ClusterRole", Name: user}, Subjects: subject}, meta.CreateOptions{}))
	must(t)(c.admin.RbacV1().Roles(system).Create(t.Context(), &rbac.Role{ObjectMeta: meta.ObjectMeta{Name: user}, Rules: []rbac.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"create"}},
		{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{kube.SecretName}, Verbs: []string{"get", "list", "watch", "update"}},
		{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{kube.RootSecretName}, Verbs: []string{"get", "update"}},
		{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: []string{"create"}},
		{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, ResourceNames: []string{kube.LeaseName}, Verbs: []string{"get", "update"}},
	}}, meta.CreateOptions{}))
	must(t)(c.admin.RbacV1().RoleBindings(system).Create(t.Context(), &rbac.RoleBinding{ObjectMeta: meta.ObjectMeta{Name: user},
		RoleRef: rbac.RoleRef{APIGroup: rbac.GroupName, Kind: "Role", Name: user}, Subjects: subject}, meta.CreateOptions{}))
}

// must fails the test if an API call did.
func must(t *testing.T) func(any, error) {
	t.Helper()
	return func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (c *cluster) pod(t *testing.T, namespace, name, account, node string, alter ...func(*core.Pod)) *core.Pod {
	t.Helper()
	p := &core.Pod{
		ObjectMeta: meta.ObjectMeta{Name: name},
		Spec: core.PodSpec{NodeName: node, ServiceAccountName: account,
			Containers: []core.Container{{Name: "main", Image: "none"}}},
	}
	for _, f := range alter {
		f(p)
	}
	made, err := c.admin.CoreV1().Pods(namespace).Create(t.Context(), p, meta.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// token asks for one as the kubelet does; without a pod it is not bound.
func (c *cluster) token(t *testing.T, account, audience string, pod *core.Pod) string {
	t.Helper()
	r := &authentication.TokenRequest{Spec: authentication.TokenRequestSpec{Audiences: []string{audience}}}
	if pod != nil {
		r.Spec.BoundObjectRef = &authentication.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}
	}
	r, err := c.admin.CoreV1().ServiceAccounts(system).CreateToken(t.Context(), account, r, meta.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r.Status.Token
}

// replica is a CA in the cluster.
type replica struct {
	service, status string
	log             *buffer
	stop            func()
}

// replica runs a CA as the user that the manifests make.
func (c *cluster) replica(t *testing.T, alter ...func(*server.Options)) *replica {
	t.Helper()
	client, err := kubernetes.NewForConfig(c.Config("token-of-the-ca"))
	if err != nil {
		t.Fatal(err)
	}
	return startReplica(t, client, alter...)
}

func startReplica(t *testing.T, client kubernetes.Interface, alter ...func(*server.Options)) *replica {
	t.Helper()
	o := server.Options{Namespace: system, TrustDomain: domain(), Address: "127.0.0.1:0", StatusAddress: "127.0.0.1:0", ServeStatus: serveStatus}
	for _, f := range alter {
		f(&o)
	}
	r := &replica{log: &buffer{}}
	ctx, cancel := context.WithCancel(context.Background())
	ended, listening := make(chan error, 1), make(chan struct{})
	go func() {
		o.Logger = slog.New(slog.NewTextHandler(r.log, nil))
		ended <- server.Serve(ctx, o, kube.FromInterface(client), func(service, status net.Addr) {
			r.service, r.status = service.String(), status.String()
			close(listening)
		})
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		r.stop()
		if t.Failed() {
			text := r.log.String()
			t.Logf("end of the log of the CA:\n%s", text[max(0, len(text)-4096):])
		}
	})
	select {
	case <-listening:
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	}
	return r
}

func serveStatus(ctx context.Context, l net.Listener, metrics prometheus.Gatherer, health http.Handler) error {
	mux := http.NewServeMux()
	mux.Handle("/", health)
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	s := &http.Server{Handler: mux}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// get asks the status server.
func (r *replica) get(path string) (int, string) {
	client := &http.Client{Timeout: 5 * time.Second}
	answer, err := client.Get("http://" + r.status + path)
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, err.Error()
	}
	return answer.StatusCode, string(text)
}

func (r *replica) ready(t *testing.T) {
	t.Helper()
	eventually(t, func() bool { code, _ := r.get("/readyz"); return code == http.StatusOK })
}

// bundle is what agents mount.
func (c *cluster) bundle(t *testing.T) []byte {
	t.Helper()
	eventually(t, func() bool {
		_, err := c.admin.CoreV1().ConfigMaps(system).Get(t.Context(), kube.ConfigMapName, meta.GetOptions{})
		return err == nil
	})
	m, err := c.admin.CoreV1().ConfigMaps(system).Get(t.Context(), kube.ConfigMapName, meta.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return []byte(m.Data[ca.RootsName])
}
