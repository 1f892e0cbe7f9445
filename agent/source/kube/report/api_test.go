package report

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/agent/source/kube/apitest"
)

const agentToken, agentUser = "agent", "system:serviceaccount:culvert-system:culvert-agent"

// startAPI runs an API server with an account that may do what this package needs, and nothing else.
func startAPI(t *testing.T) (*apitest.Server, *kubernetes.Clientset) {
	t.Helper()
	s := apitest.Start(t, map[string]string{agentToken: agentUser})
	c := s.Client()
	allow(t, c, []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"pods/status"}, Verbs: []string{"patch"}},
		{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}},
		{APIGroups: []string{"security.istio.io", "networking.istio.io"}, Resources: []string{"*"}, Verbs: []string{"list", "watch"}},
		{APIGroups: []string{"security.istio.io"}, Resources: []string{"peerauthentications/status"}, Verbs: []string{"patch"}},
		{APIGroups: []string{"networking.istio.io"}, Resources: []string{"destinationrules/status"}, Verbs: []string{"patch"}},
		{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: []string{"create"}},
		{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, ResourceNames: []string{LeaseName}, Verbs: []string{"get", "update"}},
	})
	for _, name := range []string{"n", "culvert-system"} {
		if _, err := c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return s, c
}

func allow(t *testing.T, c *kubernetes.Clientset, rules []rbacv1.PolicyRule) {
	t.Helper()
	meta := metav1.ObjectMeta{Name: "agent"}
	if _, err := c.RbacV1().ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: meta, Rules: rules}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err := c.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: meta,
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "agent"},
		Subjects:   []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: agentUser}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func newPod(t *testing.T, c *kubernetes.Clientset, name string) *source.Pod {
	t.Helper()
	pod, err := c.CoreV1().Pods("n").Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.PodSpec{NodeName: "node", Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return localPod(name, string(pod.UID), source.RedirectionAbsent)
}

func forConfig(t *testing.T, config *rest.Config, log *slog.Logger) Options {
	t.Helper()
	o, err := ForConfig(config, "node", log)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestAPIAnnotationAndEvents(t *testing.T) {
	s, c := startAPI(t)
	var log buffer
	r := running(t, forConfig(t, s.Config(agentToken), slog.New(slog.NewTextHandler(&log, nil))))
	get := func(name string) string {
		pod, err := c.CoreV1().Pods("n").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return pod.Annotations[source.RedirectionAnnotation]
	}
	pod := newPod(t, c, "p")
	r.Enrolled(pod)
	eventually(t, "annotation", func() bool { return get("p") == source.RedirectionValue })
	r.NotEnrolled(pod, "its network namespace cannot be entered")
	eventually(t, "no annotation", func() bool { return get("p") == "" })

	// Another pod of that name must not get what was meant for the first.
	r.Enrolled(pod)
	eventually(t, "annotation again", func() bool { return get("p") == source.RedirectionValue })
	if err := c.CoreV1().Pods("n").Delete(t.Context(), "p", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		t.Fatal(err)
	}
	second := newPod(t, c, "p")
	if err := annotate(t.Context(), r.client, "n", "p", "another-uid", true); !errors.Is(err, errOtherPod) {
		t.Errorf("a wrong UID: got %v, want %v", err, errOtherPod)
	} else {
		t.Log(err)
	}
	r.Unenrolled(pod)
	eventually(t, "first pod forgotten", func() bool { return r.Stats().Pending == 0 })
	if got := get("p"); got != "" {
		t.Errorf("the second pod has the annotation %q", got)
	}
	r.Enrolled(second)
	eventually(t, "annotation of the second", func() bool { return get("p") == source.RedirectionValue })

	eventually(t, "events", func() bool {
		list, err := c.CoreV1().Events("n").List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.uid=" + pod.UID})
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]string{}
		for _, e := range list.Items {
			seen[e.Type+" "+e.Reason] = e.Message
		}
		return seen["Normal Enrolled"] != "" && seen["Warning NotEnrolled"] == "its network namespace cannot be entered"
	})
	if log.String() != "" {
		t.Errorf("log: %s", log.String())
	}
}

func TestAPIRemoveAllBeforeThePermissionGoes(t *testing.T) {
	s, c := startAPI(t)
	r := running(t, forConfig(t, s.Config(agentToken), nil))
	const count = 250
	var pods []*source.Pod
	for i := range count {
		pods = append(pods, newPod(t, c, fmt.Sprint("p", i)))
		r.Enrolled(pods[i])
	}
	enrolled := func() (n int) {
		list, err := c.CoreV1().Pods("n").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range list.Items {
			if p.Annotations[source.RedirectionAnnotation] != "" {
				n++
			}
		}
		return n
	}
	begin := time.Now()
	eventually(t, "all annotated", func() bool { return enrolled() == count })
	t.Logf("%d annotations put on in %v", count, time.Since(begin).Round(time.Millisecond))
	begin = time.Now()
	if err := r.RemoveAll(t.Context(), pods); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d annotations taken off in %v", count, time.Since(begin).Round(time.Millisecond))
	if n := enrolled(); n != 0 {
		t.Errorf("%d annotations left", n)
	}
}

func TestAPIMissingPermissionIsNamed(t *testing.T) {
	s := apitest.Start(t, map[string]string{agentToken: agentUser})
	c := s.Client()
	if _, err := c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "n"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var log buffer
	r := running(t, forConfig(t, s.Config(agentToken), slog.New(slog.NewTextHandler(&log, nil))))
	p, q := newPod(t, c, "p"), newPod(t, c, "q")
	r.Enrolled(p)
	r.Enrolled(q)
	for _, verb := range []string{verbPatchStatus, verbCreateEvents} {
		eventually(t, verb, func() bool { return strings.Contains(log.String(), "lacks the permission to "+verb) })
	}
	allow(t, c, []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods/status"}, Verbs: []string{"patch"}}})
	eventually(t, "annotations once it may", func() bool { return r.Stats().Pending == 0 })
	if n := strings.Count(log.String(), "lacks the permission to "+verbPatchStatus); n != 1 {
		t.Errorf("named %d times:\n%s", n, log.String())
	}
	// Without permission, what is left is told, and soon.
	if err := c.RbacV1().ClusterRoleBindings().Delete(t.Context(), "agent", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a farewell that fails", func() bool {
		err := r.RemoveAll(t.Context(), []*source.Pod{p, q})
		return err != nil && strings.Contains(err.Error(), "forbidden")
	})
}
