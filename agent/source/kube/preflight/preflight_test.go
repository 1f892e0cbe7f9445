package preflight

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/culvert-mesh/culvert/agent/source/kube/apitest"
)

// granted reads what the manifests of the agent's account allow, as "Group Resource Verb Name Own".
func granted(t *testing.T) (allowed []string) {
	t.Helper()
	files, err := filepath.Glob("../../../../daemonset/base/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests: %v", err)
	}
	rules := map[string][]rbacv1.PolicyRule{}
	var bound []string
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, document := range strings.Split("\n"+string(content), "\n---") {
			var o struct {
				Kind     string
				Metadata struct{ Name string }
				Rules    []rbacv1.PolicyRule
				RoleRef  rbacv1.RoleRef
				Subjects []rbacv1.Subject
			}
			if err := yaml.Unmarshal([]byte(document), &o); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			switch o.Kind {
			case "Role", "ClusterRole":
				rules[o.Kind+"/"+o.Metadata.Name] = o.Rules
			case "RoleBinding", "ClusterRoleBinding":
				ours := func(s rbacv1.Subject) bool { return s.Kind == "ServiceAccount" && s.Name == "culvert-agent" }
				if slices.ContainsFunc(o.Subjects, ours) {
					bound = append(bound, o.Kind+" "+o.RoleRef.Kind+"/"+o.RoleRef.Name)
				}
			}
		}
	}
	for _, b := range bound {
		binding, role, _ := strings.Cut(b, " ")
		for _, r := range rules[role] {
			names := r.ResourceNames
			if len(names) == 0 {
				names = []string{""}
			}
			for _, g := range r.APIGroups {
				for _, resource := range r.Resources {
					for _, verb := range r.Verbs {
						for _, name := range names {
							allowed = append(allowed, line(Need{Group: g, Resource: resource, Verb: verb, Name: name, Own: binding == "RoleBinding"}))
						}
					}
				}
			}
		}
	}
	return allowed
}

func line(n Need) string {
	where := "in all namespaces"
	if n.Own {
		where = "in its own namespace"
	}
	return n.String() + " " + where
}

// TestManifestsGrantWhatIsNeeded: no less, and no more.
func TestManifestsGrantWhatIsNeeded(t *testing.T) {
	allowed := granted(t)
	var needed []string
	for _, n := range Needs(DefaultDaemonSet) {
		needed = append(needed, line(n))
		if !slices.Contains(allowed, line(n)) {
			t.Errorf("the manifests do not grant: %s (%s)", line(n), n.Reason)
		}
	}
	for _, a := range allowed {
		if !slices.Contains(needed, a) {
			t.Errorf("the manifests grant what is not needed: %s", a)
		}
	}
}

func TestNeeds(t *testing.T) {
	seen := map[string]bool{}
	for _, n := range Needs("d") {
		if n.Reason == "" || n.Verb == "" || n.Resource == "" || seen[line(n)] {
			t.Errorf("%+v", n)
		}
		seen[line(n)] = true
	}
	for want, n := range map[string]Need{
		"patch pods/status": {Resource: "pods/status", Verb: "patch"},
		"patch peerauthentications.security.istio.io/status": {Group: "security.istio.io", Resource: "peerauthentications/status", Verb: "patch"},
		"get daemonsets.apps d":                              {Group: "apps", Resource: "daemonsets", Verb: "get", Name: "d"},
	} {
		if got := n.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestClock(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 600e6, time.UTC)
	for _, tc := range []struct {
		offset time.Duration // of the server's clock
		state  State
		detail string
	}{
		{0, OK, "agrees"}, {time.Second, OK, "agrees"}, {-9 * time.Second, OK, "agrees"},
		{20 * time.Second, Warning, "19s behind"}, {-20 * time.Second, Warning, "20s ahead of"},
		{time.Hour, Failed, "behind"}, {-time.Hour, Failed, "ahead of"},
	} {
		got := clockResult(Result{}, now.Add(tc.offset).UTC().Format(http.TimeFormat), now, now.Add(10*time.Millisecond))
		if got.State != tc.state || !strings.Contains(got.Detail, tc.detail) {
			t.Errorf("server %v off: got %s %q, want %s %q", tc.offset, got.State, got.Detail, tc.state, tc.detail)
		}
	}
	if got := clockResult(Result{}, "soon", now, now); got.State != Warning {
		t.Errorf("without a date: %+v", got)
	}
}

func TestWhatIsNoAPIServer(t *testing.T) {
	for name, tc := range map[string]struct {
		handler http.HandlerFunc
		want    string
	}{
		"expired token":  {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }, "expired"},
		"another server": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }, "no API server"},
		"too busy":       {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "later", http.StatusTooManyRequests) }, "429"},
		"hangs": {func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
			case <-time.After(10 * time.Second):
			}
		}, "not reachable"},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(tc.handler)
			defer s.Close()
			results := Check(t.Context(), &rest.Config{Host: s.URL}, Options{Timeout: 500 * time.Millisecond})
			if len(results) != 1 || results[0].State != Failed || !strings.Contains(results[0].Detail, tc.want) || !AnyFailed(results) {
				t.Errorf("got %+v, want one failure with %q", results, tc.want)
			}
		})
	}
	nobody := Check(t.Context(), &rest.Config{Host: "https://127.0.0.1:1"}, Options{})
	if len(nobody) != 1 || nobody[0].State != Failed {
		t.Errorf("nobody listens: %+v", nobody)
	}
}

func find(t *testing.T, results []Result, check string) Result {
	t.Helper()
	for _, r := range results {
		if r.Check == check {
			return r
		}
	}
	t.Fatalf("no check %q", check)
	return Result{}
}

// TestAPI looks at a real API server as the agent's account, with what the manifests grant, then with less.
func TestAPI(t *testing.T) {
	const user = "system:serviceaccount:culvert-system:culvert-agent"
	s := apitest.Start(t, map[string]string{"agent": user})
	c := s.Client()
	ctx := t.Context()
	results := Check(ctx, s.Config("agent"), Options{})
	if !AnyFailed(results) || find(t, results, "API server").State != OK || find(t, results, "clock").State != OK {
		t.Errorf("bare cluster: %+v", results)
	}
	if r := find(t, results, "may list pods"); r.State != Failed || r.Detail != "permission missing" || r.Needed == "" {
		t.Errorf("missing permission: %+v", r)
	}
	if r := find(t, results, "PeerAuthentication is served"); r.State != Warning {
		t.Errorf("missing kind: %+v", r)
	}
	if r := find(t, results, "ServiceCIDR is served"); r.State != OK || !strings.Contains(r.Detail, "v1") {
		t.Errorf("kind: %+v", r)
	}

	ns, err := c.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: "culvert-system", Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	cluster, own := rolesOf(Needs(DefaultDaemonSet))
	grant(ctx, t, s, cluster, own)
	labels := map[string]string{"a": "b"}
	if _, err := c.AppsV1().DaemonSets("culvert-system").Create(ctx, &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: DefaultDaemonSet},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "agent", Image: "i"}}}},
		},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second) // RBAC takes new roles up a moment later
	for {
		results = Check(ctx, s.Config("agent"), Options{})
		if missing(results) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d permissions missing: %+v", missing(results), results)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if r := find(t, results, "namespace culvert-system"); r.State != Failed || !strings.Contains(r.Detail, "privileged") {
		t.Errorf("namespace: %+v", r)
	}
	if r := find(t, results, "daemonset culvert-agent"); !strings.Contains(r.Detail, "0 of 0 ready") {
		t.Errorf("daemonset: %+v", r)
	}
	ns.Labels["pod-security.kubernetes.io/enforce"] = "privileged"
	if _, err := c.CoreV1().Namespaces().Update(ctx, ns, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	// An administrator asks for the account.
	results = Check(ctx, s.Config(""), Options{ServiceAccount: "culvert-agent"})
	if AnyFailed(results) {
		t.Errorf("results: %+v", results)
	}
	var table bytes.Buffer
	if err := WriteTable(&table, results); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + table.String())
}

func missing(results []Result) (n int) {
	for _, r := range results {
		if strings.HasPrefix(r.Check, "may ") && r.State != OK {
			n++
		}
	}
	return n
}

func rolesOf(needs []Need) (cluster, own []rbacv1.PolicyRule) {
	for _, n := range needs {
		r := rbacv1.PolicyRule{APIGroups: []string{n.Group}, Resources: []string{n.Resource}, Verbs: []string{n.Verb}}
		if n.Name != "" {
			r.ResourceNames = []string{n.Name}
		}
		if n.Own {
			own = append(own, r)
		} else {
			cluster = append(cluster, r)
		}
	}
	return cluster, own
}

func grant(ctx context.Context, t *testing.T, s *apitest.Server, cluster, own []rbacv1.PolicyRule) {
	t.Helper()
	c, meta := s.Client().RbacV1(), metav1.ObjectMeta{Name: "culvert-agent"}
	subjects := []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "culvert-system", Name: "culvert-agent"}}
	if _, err := c.ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: meta, Rules: cluster}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Roles("culvert-system").Create(ctx, &rbacv1.Role{ObjectMeta: meta, Rules: own}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: meta, Subjects: subjects,
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: meta.Name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RoleBindings("culvert-system").Create(ctx, &rbacv1.RoleBinding{ObjectMeta: meta, Subjects: subjects,
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: meta.Name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}
