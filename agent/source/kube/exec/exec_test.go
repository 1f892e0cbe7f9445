package exec

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	authorization "k8s.io/api/authorization/v1"
	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/culvert-mesh/culvert/agent/source/kube/apitest"
)

const namespace = "culvert-system"

func answers(text string) program {
	return func(_ string, _ []string, stdout, _ io.Writer) int {
		_, _ = io.WriteString(stdout, text)
		return 0
	}
}

// TestThroughAPIServer has a real API server lead to a kubelet that is ours.
func TestThroughAPIServer(t *testing.T) {
	server := apitest.Start(t, map[string]string{"nobody": "nobody", "operator": "operator"})
	k := startKubelet(t)
	fill(t, server.Client(), k.port(t))
	cluster := clusterOf(t, server.Config(""))

	t.Run("a command and its answer", func(t *testing.T) {
		var where string
		var said []string
		k.does(func(path string, args []string, stdout, stderr io.Writer) int {
			where, said = path, args
			_, _ = io.WriteString(stderr, "a warning\n")
			_, _ = io.WriteString(stdout, "the answer")
			return 0
		})
		got, err := cluster.Run(t.Context(), "n1", "certs", "--local", "a b")
		if err != nil || string(got) != "the answer" {
			t.Fatalf("%q, %v", got, err)
		}
		if !strings.HasSuffix(where, "/culvert-system/agent-new/agent") || !slices.Equal(said, []string{"culvert", "certs", "--local", "a b"}) {
			t.Errorf("asked %s for %q", where, said)
		}
	})
	t.Run("another exit code", func(t *testing.T) {
		k.does(func(_ string, _ []string, stdout, stderr io.Writer) int {
			_, _ = io.WriteString(stdout, "{}")
			_, _ = io.WriteString(stderr, "culvert: it failed\n")
			return 3
		})
		got, err := cluster.Run(t.Context(), "n1", "certs")
		var exit *ExitError
		if !errors.As(err, &exit) || exit.Code != 3 || exit.Stderr != "culvert: it failed" || string(got) != "{}" {
			t.Errorf("%q, %v", got, err)
		}
		if !strings.Contains(err.Error(), "agent of node n1 (pod culvert-system/agent-new)") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("40 MB", func(t *testing.T) {
		large := bytes.Repeat([]byte("0123456789abcdef"), 40<<16)
		k.does(func(_ string, _ []string, stdout, _ io.Writer) int {
			for chunk := range slices.Chunk(large, 32<<10) { // as much as a kubelet copies at a time
				if _, err := stdout.Write(chunk); err != nil {
					return 1
				}
			}
			return 0
		})
		got, err := cluster.Run(t.Context(), "n1", "certs")
		if err != nil || !bytes.Equal(got, large) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
	t.Run("interrupted", func(t *testing.T) {
		release, began := make(chan struct{}), make(chan struct{})
		defer close(release)
		k.does(func(string, []string, io.Writer, io.Writer) int {
			close(began)
			<-release
			return 0
		})
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-began
			cancel()
		}()
		if _, err := cluster.Run(ctx, "n1", "certs"); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("where a pod is", func(t *testing.T) {
		tests := map[string]struct{ node, want string }{
			"shop/cart-7f-1":  {node: "n1"},
			"shop/waits":      {want: "has not been scheduled to a node yet"},
			"shop/cart-7f-9":  {want: `pods "cart-7f-9" not found in namespace "shop": there are cart-7f-1`},
			"shop/many-x":     {want: "many-00, many-01, many-02, many-03, many-04, many-05, many-06, many-07, many-08, many-09 and 2 more"},
			"shop/zebra":      {want: "in shop there are"},
			"nowhere/cart":    {want: "namespace nowhere has no pods, or does not exist"},
			"shop/../secrets": {want: "API server"},
		}
		for pod, tt := range tests {
			node, err := cluster.NodeOf(t.Context(), pod)
			if node != tt.node || (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: node %q, error %v", pod, node, err)
			}
		}
	})
	t.Run("nodes without an agent", func(t *testing.T) {
		for node, want := range map[string]string{
			"n2":   "agent of node n2 (pod culvert-system/agent-2) does not run: it is Pending",
			"none": "node none has no agent: agents run on n1, n2",
		} {
			if _, err := cluster.Run(t.Context(), node, "certs"); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v, want %q", err, want)
			}
		}
		elsewhere, err := open(server.Config(""), "default")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := elsewhere.Run(t.Context(), "n1", "certs"); err == nil || !strings.Contains(err.Error(), "no pod in namespace default is an agent") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("a context of a kubeconfig", func(t *testing.T) {
		file := kubeconfig(t, server.Config(""))
		for name, want := range map[string]string{"right": "", "": "connection refused", "none": `context "none" does not exist`} {
			c, err := Open(Options{Kubeconfig: file, Context: name, Namespace: namespace})
			if err == nil {
				_, err = c.agentNodes(t.Context())
			}
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("context %q: %v, want %q", name, err, want)
			}
		}
	})
	t.Run("without permission", func(t *testing.T) {
		nobody := clusterOf(t, server.Config("nobody"))
		if _, err := nobody.NodeOf(t.Context(), "shop/cart-7f-1"); err == nil || !strings.Contains(err.Error(), `cannot get resource "pods"`) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("with no more permissions than are needed", func(t *testing.T) {
		permit(t, server.Client(), "operator")
		operator := clusterOf(t, server.Config("operator"))
		k.does(answers("yes"))
		node, err := operator.NodeOf(t.Context(), "shop/cart-7f-1")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := operator.Run(t.Context(), node, "certs"); err != nil || string(got) != "yes" {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("kubelet away", func(t *testing.T) {
		k.Close()
		if _, err := cluster.Run(t.Context(), "n1", "certs"); err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("error %v", err)
		}
	})
}

// permit gives a user what the package says that it needs, and waits until the API server knows.
func permit(t *testing.T, client *kubernetes.Clientset, user string) {
	t.Helper()
	for ns, rules := range map[string][]rbac.PolicyRule{
		"":        {{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get", "list"}}},
		namespace: {{APIGroups: []string{""}, Resources: []string{"pods/exec"}, Verbs: []string{"create"}}},
	} {
		meta := metav1.ObjectMeta{Name: user, Namespace: ns}
		subjects := []rbac.Subject{{Kind: rbac.UserKind, APIGroup: rbac.GroupName, Name: user}}
		var err, bindErr error
		if ns == "" {
			_, err = client.RbacV1().ClusterRoles().Create(t.Context(), &rbac.ClusterRole{ObjectMeta: meta, Rules: rules}, metav1.CreateOptions{})
			_, bindErr = client.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbac.ClusterRoleBinding{ObjectMeta: meta, Subjects: subjects,
				RoleRef: rbac.RoleRef{APIGroup: rbac.GroupName, Kind: "ClusterRole", Name: user}}, metav1.CreateOptions{})
		} else {
			_, err = client.RbacV1().Roles(ns).Create(t.Context(), &rbac.Role{ObjectMeta: meta, Rules: rules}, metav1.CreateOptions{})
			_, bindErr = client.RbacV1().RoleBindings(ns).Create(t.Context(), &rbac.RoleBinding{ObjectMeta: meta, Subjects: subjects,
				RoleRef: rbac.RoleRef{APIGroup: rbac.GroupName, Kind: "Role", Name: user}}, metav1.CreateOptions{})
		}
		if err := errors.Join(err, bindErr); err != nil {
			t.Fatal(err)
		}
	}
	review := &authorization.SubjectAccessReview{Spec: authorization.SubjectAccessReviewSpec{User: user, ResourceAttributes: &authorization.ResourceAttributes{
		Namespace: namespace, Verb: "create", Resource: "pods", Subresource: "exec"}}}
	for {
		got, err := client.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), review, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got.Status.Allowed {
			return
		}
		select {
		case <-t.Context().Done():
			t.Fatal("the API server does not take up the permissions")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// kubeconfig writes a file whose current context leads nowhere, and the context "right" to the API server.
func kubeconfig(t *testing.T, c *rest.Config) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	err := clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters: map[string]*clientcmdapi.Cluster{
			"right": {Server: c.Host, CertificateAuthority: c.CAFile}, "wrong": {Server: "https://127.0.0.1:1"},
		},
		AuthInfos: map[string]*clientcmdapi.AuthInfo{"admin": {Token: c.BearerToken}},
		Contexts: map[string]*clientcmdapi.Context{
			"right": {Cluster: "right", AuthInfo: "admin"}, "wrong": {Cluster: "wrong", AuthInfo: "admin"},
		},
		CurrentContext: "wrong",
	}, file)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func clusterOf(t *testing.T, config *rest.Config) *Cluster {
	t.Helper()
	c, err := open(config, namespace)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// fill makes nodes n1, whose kubelet is ours, and n2, with agents, and some pods.
func fill(t *testing.T, client *kubernetes.Clientset, port int) {
	t.Helper()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	node, err := client.CoreV1().Nodes().Create(ctx, &core.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, metav1.CreateOptions{})
	must(err)
	node.Status.Addresses = []core.NodeAddress{{Type: core.NodeInternalIP, Address: "127.0.0.1"}}
	node.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(port)
	_, err = client.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{})
	must(err)
	for _, name := range []string{namespace, "shop"} {
		_, err := client.CoreV1().Namespaces().Create(ctx, &core.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		must(err)
	}
	pod := func(ns, name, node string, phase core.PodPhase, labels map[string]string) {
		t.Helper()
		p := &core.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns, Labels: labels}, Spec: core.PodSpec{
			NodeName: node, Containers: []core.Container{{Name: container, Image: "i"}},
		}}
		p, err := client.CoreV1().Pods(ns).Create(ctx, p, metav1.CreateOptions{})
		must(err)
		p.Status.Phase = phase
		_, err = client.CoreV1().Pods(ns).UpdateStatus(ctx, p, metav1.UpdateOptions{})
		must(err)
	}
	agent := map[string]string{"app.kubernetes.io/name": "culvert", "app.kubernetes.io/component": "agent"}
	pod(namespace, "agent-failed", "n1", core.PodFailed, agent)
	pod(namespace, "agent-new", "n1", core.PodRunning, agent)
	pod(namespace, "agent-old", "n1", core.PodRunning, agent)
	must(client.CoreV1().Pods(namespace).Delete(ctx, "agent-old", metav1.DeleteOptions{GracePeriodSeconds: new(int64(600))}))
	pod(namespace, "agent-2", "n2", core.PodPending, agent)
	pod(namespace, "other", "n1", core.PodRunning, nil)
	pod("shop", "cart-7f-1", "n1", core.PodRunning, nil)
	pod("shop", "waits", "", core.PodPending, nil)
	for i := range 12 {
		pod("shop", fmt.Sprintf("many-%02d", i), "n1", core.PodRunning, nil)
	}
}

// TestWithoutWebSocketsItIsSPDY: a proxy that lets no WebSocket pass stands before an API server that knows one pod.
func TestWithoutWebSocketsItIsSPDY(t *testing.T) {
	k := &kubelet{}
	k.does(answers("over SPDY"))
	var refused int
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.EqualFold(r.Header.Get("Upgrade"), "websocket"):
			refused++
			http.Error(w, "no WebSockets here", http.StatusBadRequest)
		case strings.HasSuffix(r.URL.Path, "/exec"):
			k.exec(w, r)
		default:
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(core.PodList{
				TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"},
				Items:    []core.Pod{{ObjectMeta: metav1.ObjectMeta{Name: "agent-1"}, Status: core.PodStatus{Phase: core.PodRunning}}},
			})
		}
	}))
	t.Cleanup(func() {
		api.Close()
		k.wg.Wait()
	})
	cluster := clusterOf(t, &rest.Config{Host: api.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	got, err := cluster.Run(t.Context(), "n1", "certs")
	if err != nil || string(got) != "over SPDY" || refused != 1 {
		t.Errorf("%q, %v; %d WebSockets refused", got, err, refused)
	}
}

func TestOutputHasAnEnd(t *testing.T) {
	full := 0
	l := &limited{most: 10, full: func() { full++ }}
	for range 3 {
		if n, err := l.Write([]byte("12345678")); n != 8 || err != nil {
			t.Fatal(n, err)
		}
	}
	if string(l.bytes()) != "1234567812" || full == 0 {
		t.Errorf("kept %q, told %d times", l.bytes(), full)
	}
}

func TestKubeconfig(t *testing.T) {
	t.Setenv("KUBECONFIG", "/nonexistent")
	t.Setenv("HOME", t.TempDir())
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := Open(Options{}); err == nil || !strings.Contains(err.Error(), "name one with --kubeconfig") {
		t.Errorf("none: %v", err)
	}
	if _, err := Open(Options{Kubeconfig: "/nonexistent/config"}); err == nil || !strings.Contains(err.Error(), "/nonexistent/config") {
		t.Errorf("missing: %v", err)
	}
}
