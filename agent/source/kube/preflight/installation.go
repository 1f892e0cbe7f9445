package preflight

import (
	"context"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// kind is one that the agent reads, in the versions that it knows.
type kind struct {
	group, name, resource string
	versions              []string
	needed, without       string
}

func wantedKinds() []kind {
	return []kind{
		{"security.istio.io", "PeerAuthentication", "peerauthentications", []string{"v1", "v1beta1"},
			"the policies", "until its CRD is there, every port is PERMISSIVE"},
		{"networking.istio.io", "DestinationRule", "destinationrules", []string{"v1", "v1beta1", "v1alpha3"},
			"the client's side of policies", "until its CRD is there, clients decide by PeerAuthentication alone"},
		{"networking.k8s.io", "ServiceCIDR", "servicecidrs", []string{"v1", "v1beta1"},
			"the ranges of the Services' addresses", "not served before Kubernetes 1.31: Services are captured one by one"},
	}
}

// kinds tells which versions of the policies' kinds are served. Agents wait for what is not there.
func (c *checker) kinds() []Result {
	var results []Result
	for _, k := range wantedKinds() {
		results = append(results, c.kind(k))
	}
	return results
}

func (c *checker) kind(k kind) Result {
	r := Result{Check: k.name + " is served", State: OK, Needed: k.needed}
	var versions []string
	status := false
	for _, version := range k.versions {
		list, err := c.client.Discovery().ServerResourcesForGroupVersion(schema.GroupVersion{Group: k.group, Version: version}.String())
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return Result{r.Check, Warning, "not known: " + short(err.Error()), k.needed}
		}
		has := func(name string) bool {
			return slices.ContainsFunc(list.APIResources, func(a metav1.APIResource) bool { return a.Name == name })
		}
		if has(k.resource) {
			versions = append(versions, version)
			status = status || has(k.resource+"/status")
		}
	}
	if len(versions) == 0 {
		r.State, r.Detail = Warning, "no: "+k.without
		return r
	}
	r.Detail = strings.Join(versions, ", ")
	if !status && k.group != "networking.k8s.io" {
		r.Detail += "; without status: conditions are not written"
	}
	return r
}

// installation looks at what the manifests made. Before the installation, that is nothing.
func (c *checker) installation(ctx context.Context) []Result {
	return []Result{c.namespace(ctx), c.daemonSet(ctx)}
}

func (c *checker) namespace(ctx context.Context) Result {
	r := Result{Check: "namespace " + c.Namespace, State: OK, Detail: "there", Needed: "where the agent runs"}
	// A list of one, because that is what the agent may do.
	list, err := c.client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", c.Namespace).String(),
	})
	switch {
	case err != nil:
		r.State, r.Detail = Warning, "not known: "+short(err.Error())
		return r
	case len(list.Items) == 0:
		r.State, r.Detail = Warning, "not installed"
		return r
	}
	ns := &list.Items[0]
	const enforce = "pod-security.kubernetes.io/enforce"
	switch level := ns.Labels[enforce]; {
	case ns.DeletionTimestamp != nil:
		r.State, r.Detail = Warning, "being deleted"
	case level == "baseline" || level == "restricted":
		r.State, r.Detail = Failed, fmt.Sprintf("label %s=%s keeps the agent's pods from starting: it must be privileged", enforce, level)
	}
	return r
}

func (c *checker) daemonSet(ctx context.Context) Result {
	r := Result{Check: "daemonset " + c.DaemonSet, State: OK, Needed: "an agent on every node"}
	d, err := c.client.AppsV1().DaemonSets(c.Namespace).Get(ctx, c.DaemonSet, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		r.State, r.Detail = Warning, "not installed"
		return r
	case err != nil:
		r.State, r.Detail = Warning, "not known: "+short(err.Error())
		return r
	}
	s := d.Status
	r.Detail = fmt.Sprintf("%d of %d ready, %d up to date", s.NumberReady, s.DesiredNumberScheduled, s.UpdatedNumberScheduled)
	switch {
	case d.DeletionTimestamp != nil:
		r.State, r.Detail = Warning, "being deleted"
	case s.NumberReady < s.DesiredNumberScheduled || s.ObservedGeneration < d.Generation:
		r.State = Warning
	}
	return r
}
