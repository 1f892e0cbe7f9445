package kube_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/ca/kube"
	"github.com/culvert-mesh/culvert/agent/identity/ca/server"
)

func TestRunWithARealAPIServer(t *testing.T) {
	c := newCluster(t)
	r := c.replica(t)
	r.ready(t)
	roots := c.bundle(t)

	agentA := c.pod(t, system, "agent-a", "culvert-agent", "node-a", onHost)
	agentB := c.pod(t, system, "agent-b", "culvert-agent", "node-b", onHost)
	gone := c.pod(t, system, "agent-gone", "culvert-agent", "node-a", onHost)
	other := c.pod(t, system, "prometheus", "prometheus", "node-a")
	c.pod(t, "shop", "cart", "cart", "node-a")
	c.pod(t, "shop", "till", "till", "node-b")
	c.pod(t, "shop", "kubeproxy", "kubeproxy", "node-a", onHost)

	a := c.token(t, "culvert-agent", "culvert-ca", agentA)
	b := c.token(t, "culvert-agent", "culvert-ca", agentB)
	revoked := c.token(t, "culvert-agent", "culvert-ca", gone)
	if err := c.admin.CoreV1().Pods(system).Delete(t.Context(), gone.Name, now()); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, token, account string
		inside               string // empty: issued
	}{
		{"on the agent's node, before the watch can have told", a, "cart", ""},
		{"on the other agent's node", b, "till", ""},
		{"on another node", a, "till", "no live pod"},
		{"with the token of another node's agent", b, "cart", "no live pod"},
		{"of a pod on the host's network", a, "kubeproxy", "no live pod"},
		{"of no pod", a, "default", "no live pod"},
		{"token for another audience", c.token(t, "culvert-agent", "vault", agentA), "cart", "token: not authenticated"},
		{"token of another account", c.token(t, "prometheus", "culvert-ca", other), "cart", "culvert-system/prometheus may not ask"},
		{"token that is bound to nothing", c.token(t, "culvert-agent", "culvert-ca", nil), "cart", "is not bound to a pod"},
		{"token of a pod that was deleted", revoked, "cart", "token: not authenticated"},
		{"forged token", a[:len(a)-8] + "AAAAAAAA", "cart", "token: not authenticated"},
		{"no token at all", "guess", "cart", "token: not authenticated"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			svid, err := client(t, r.service, roots, test.token).Issue(t.Context(), identity.Workload{ID: id("shop", test.account)})
			if test.inside != "" {
				refusedWith(t, err, "code = PermissionDenied", r.log, test.inside)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if svid.ID != id("shop", test.account) {
				t.Fatalf("got %s", svid.ID)
			}
		})
	}

	t.Run("no longer when the pod has ended", func(t *testing.T) {
		agent := client(t, r.service, roots, a)
		pod, err := c.admin.CoreV1().Pods("shop").Get(t.Context(), "cart", meta.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		pod.Status.Phase = core.PodSucceeded
		must(t)(c.admin.CoreV1().Pods("shop").UpdateStatus(t.Context(), pod, meta.UpdateOptions{}))
		eventually(t, func() bool {
			_, err := agent.Issue(t.Context(), identity.Workload{ID: id("shop", "cart")})
			return err != nil && strings.Contains(err.Error(), "code = PermissionDenied")
		})
	})
	if strings.Contains(r.log.String(), a[:20]) || strings.Contains(r.log.String(), "PRIVATE") {
		t.Error("the log has a token or a key")
	}
	eventually(t, func() bool {
		_, text := r.get("/metrics")
		for _, want := range []string{"culvert_ca_certificates_issued_total ", `culvert_ca_requests_refused_total{reason="not_on_node"} `,
			"culvert_ca_leader 1\n", `culvert_ca_rotation_phase{phase="stable"} 1` + "\n", `culvert_ca_rotation_phase{phase="retire"} 0` + "\n",
			`culvert_ca_bundle_namespaces{state="pending"} 0` + "\n", "culvert_ca_bundle_roots 1\n", "culvert_ca_root_expiry_timestamp_seconds ",
			"culvert_ca_intermediate_expiry_timestamp_seconds ", "culvert_ca_intermediate_not_before_timestamp_seconds 1", "culvert_ca_root_not_before_timestamp_seconds 1",
			"culvert_ca_rotation_wait_seconds 0\n", "culvert_ca_rotation_phase_since_timestamp_seconds 1", "culvert_ca_token_review_seconds_count ", "culvert_ca_token_review_failures_total 0\n",
			"culvert_ca_bundle_streams 0\n", "culvert_ca_bundle_write_failures_total 0\n"} {
			if !strings.Contains(text, want) {
				t.Logf("metrics lack %q", want)
				return false
			}
		}
		return true
	})
}

func TestReplicasThatStartAtOnceShareOneRootAndIssueForEachOther(t *testing.T) {
	c := newCluster(t)
	agent := c.pod(t, system, "agent", "culvert-agent", "node-a", onHost)
	c.pod(t, "shop", "cart", "cart", "node-a")
	token := c.token(t, "culvert-agent", "culvert-ca", agent)
	replicas := []*replica{c.replica(t), c.replica(t), c.replica(t)}
	for _, r := range replicas {
		r.ready(t)
	}
	roots := c.bundle(t)
	for i, r := range replicas {
		if _, err := client(t, r.service, roots, token).Issue(t.Context(), identity.Workload{ID: id("shop", "cart")}); err != nil {
			t.Errorf("replica %d: %v", i, err)
		}
	}
}

func TestAPIServerAwayAndBack(t *testing.T) {
	c := newCluster(t)
	agent := c.pod(t, system, "agent", "culvert-agent", "node-a", onHost)
	c.pod(t, "shop", "cart", "cart", "node-a")
	r := c.replica(t)
	r.ready(t)
	roots := c.bundle(t)
	one, two := c.token(t, "culvert-agent", "culvert-ca", agent), c.token(t, "culvert-agent", "culvert-ca", agent)
	if _, err := client(t, r.service, roots, one).Issue(t.Context(), identity.Workload{ID: id("shop", "cart")}); err != nil {
		t.Fatal(err)
	}
	c.StopAPI()
	if _, err := client(t, r.service, roots, one).Issue(t.Context(), identity.Workload{ID: id("shop", "cart")}); err != nil {
		t.Errorf("a token that was just reviewed, for a pod that is known: %v", err)
	}
	if _, err := client(t, r.service, roots, two).Issue(t.Context(), identity.Workload{ID: id("shop", "cart")}); err == nil || !strings.Contains(err.Error(), "code = Unavailable") {
		t.Errorf("a token that nobody can review: %v", err)
	}
	c.StartAPI()
	eventually(t, func() bool {
		_, err := client(t, r.service, roots, two).Issue(t.Context(), identity.Workload{ID: id("shop", "cart")})
		return err == nil
	})
}

func TestRunEndsOnABrokenSecret(t *testing.T) {
	broken := fake.NewSimpleClientset(&core.Secret{ObjectMeta: meta.ObjectMeta{Namespace: system, Name: kube.SecretName}})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err := server.Serve(ctx, server.Options{Namespace: system, TrustDomain: domain(), Address: "127.0.0.1:0", StatusAddress: "127.0.0.1:0",
		Logger: slog.New(slog.DiscardHandler)}, kube.FromInterface(broken), nil)
	if err == nil || !strings.Contains(err.Error(), "Secret culvert-system/culvert-ca cannot be used") || errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v", err)
	}
}

func TestReadyOnceAllIsThere(t *testing.T) {
	r := startReplica(t, fake.NewSimpleClientset(&core.Namespace{ObjectMeta: meta.ObjectMeta{Name: system}}))
	r.ready(t)
	if code, text := r.get("/healthz"); code != http.StatusOK {
		t.Fatalf("/healthz: %d %s", code, text)
	}
	if code, _ := r.get("/elsewhere"); code != http.StatusNotFound {
		t.Fatalf("/elsewhere: %d", code)
	}
}

func onHost(p *core.Pod) { p.Spec.HostNetwork = true }

func now() meta.DeleteOptions {
	var zero int64
	return meta.DeleteOptions{GracePeriodSeconds: &zero}
}
