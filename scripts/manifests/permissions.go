package main

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
)

// checkPermissions asks the API server who may do what: also that nobody may do what would be worth taking over an agent
// for.
func checkPermissions(ctx context.Context, s *server, r *report) {
	const own, other = namespace, "default"
	for _, c := range []struct {
		account, verb, what, namespace string
		allowed                        bool
	}{
		{"culvert-agent", "list", "pods", other, true},
		{"culvert-agent", "watch", "pods", other, true},
		{"culvert-agent", "patch", "pods/status", other, true},
		{"culvert-agent", "watch", "services", other, true},
		{"culvert-agent", "watch", "endpointslices.discovery.k8s.io", other, true},
		{"culvert-agent", "watch", "namespaces", "", true},
		{"culvert-agent", "watch", "nodes", "", true},
		{"culvert-agent", "list", "servicecidrs.networking.k8s.io", "", true},
		{"culvert-agent", "watch", "peerauthentications.security.istio.io", other, true},
		{"culvert-agent", "watch", "destinationrules.networking.istio.io", other, true},
		{"culvert-agent", "patch", "peerauthentications.security.istio.io/status", other, true},
		{"culvert-agent", "create", "events", other, true},
		{"culvert-agent", "patch", "events", other, true},
		{"culvert-agent", "patch", "destinationrules.networking.istio.io/status", other, true},
		{"culvert-agent", "get", "daemonsets.apps/culvert-agent", own, true},
		{"culvert-agent", "create", "leases.coordination.k8s.io", own, true},
		{"culvert-agent", "update", "leases.coordination.k8s.io/culvert-status", own, true},
		{"culvert-agent", "patch", "daemonsets.apps/culvert-agent", own, false},
		{"culvert-agent", "patch", "pods", other, false},
		{"culvert-agent", "update", "pods/status", other, false},
		{"culvert-agent", "create", "pods", own, false},
		{"culvert-agent", "delete", "pods", own, false},
		{"culvert-agent", "get", "secrets/culvert-ca", own, false},
		{"culvert-agent", "get", "secrets/culvert-ca-root", own, false},
		{"culvert-agent", "list", "secrets", other, false},
		{"culvert-agent", "list", "configmaps", own, false},
		{"culvert-agent", "patch", "nodes", "", false},
		{"culvert-agent", "patch", "peerauthentications.security.istio.io", other, false},
		{"culvert-agent", "patch", "clusterrolebindings.rbac.authorization.k8s.io", "", false},
		{"culvert-ca", "create", "tokenreviews.authentication.k8s.io", "", true},
		{"culvert-ca", "watch", "pods", other, true},
		{"culvert-ca", "create", "secrets", own, true},
		{"culvert-ca", "watch", "secrets/culvert-ca", own, true},
		{"culvert-ca", "update", "secrets/culvert-ca", own, true},
		{"culvert-ca", "get", "secrets/culvert-ca-root", own, true},
		{"culvert-ca", "update", "secrets/culvert-ca-root", own, true},
		{"culvert-ca", "create", "leases.coordination.k8s.io", own, true},
		{"culvert-ca", "update", "leases.coordination.k8s.io/culvert-ca", own, true},
		{"culvert-ca", "watch", "namespaces", "", true},
		{"culvert-ca", "create", "configmaps", other, true},
		{"culvert-ca", "watch", "configmaps/culvert-ca-root-cert", "", true},
		{"culvert-ca", "patch", "configmaps/culvert-ca-root-cert", other, true},
		{"culvert-ca", "get", "clusterroles.rbac.authorization.k8s.io/culvert-ca", "", true},
		{"culvert-ca", "create", "customresourcedefinitions.apiextensions.k8s.io", "", true},
		{"culvert-ca", "get", "customresourcedefinitions.apiextensions.k8s.io/peerauthentications.security.istio.io", "", true},
		{"culvert-ca", "delete", "secrets/culvert-ca", own, false},
		{"culvert-ca", "list", "configmaps", other, false},
		{"culvert-ca", "patch", "configmaps/other", other, false},
		{"culvert-ca", "update", "leases.coordination.k8s.io/other", own, false},
		{"culvert-ca", "patch", "clusterroles.rbac.authorization.k8s.io/culvert-ca", "", false},
		{"culvert-ca", "get", "secrets/other", own, false},
		{"culvert-ca", "list", "secrets", own, false},
		{"culvert-ca", "create", "secrets", other, false},
		{"culvert-ca", "patch", "pods", own, false},
		{"culvert-ca", "delete", "customresourcedefinitions.apiextensions.k8s.io/peerauthentications.security.istio.io", "", false},
		{"culvert-tunnel", "list", "pods", own, false},
		{"culvert-tunnel", "get", "secrets/culvert-ca", own, false},
		{"culvert-tunnel", "get", "secrets/culvert-ca-root", own, false},
		{"culvert-tunnel", "list", "namespaces", "", false},
	} {
		problem, want := "", map[bool]string{true: "yes", false: "no"}[c.allowed]
		allowed, err := mayDo(ctx, s, c.account, c.verb, c.what, c.namespace)
		if err != nil {
			problem = text(err)
		} else if allowed != c.allowed {
			problem = "the API server says otherwise"
		}
		r.check(problem, "%s: %s %s in %q: %s", c.account, c.verb, c.what, c.namespace, want)
	}
}

// mayDo asks the API server whether the account may do that to what: a resource with its group, and a subresource, or
// the name of one object.
func mayDo(ctx context.Context, s *server, account, verb, what, where string) (bool, error) {
	resource, rest, _ := strings.Cut(what, "/")
	resource, group, _ := strings.Cut(resource, ".")
	attributes := map[string]string{"verb": verb, "group": group, "resource": resource, "namespace": where}
	if rest == "status" {
		attributes["subresource"] = rest
	} else {
		attributes["name"] = rest
	}
	body, err := json.Marshal(map[string]any{"spec": map[string]any{
		"user":               "system:serviceaccount:" + namespace + ":" + account,
		"groups":             []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, "system:authenticated"},
		"resourceAttributes": attributes,
	}})
	if err != nil {
		return false, err
	}
	answer, err := newAPI(s.url).send(ctx, s.token, http.MethodPost, "/apis/authorization.k8s.io/v1/subjectaccessreviews", "application/json", string(body))
	if err != nil {
		return false, err
	}
	var review struct{ Status struct{ Allowed bool } }
	err = json.Unmarshal(answer, &review)
	return review.Status.Allowed, err
}
