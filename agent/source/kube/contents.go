package kube

import (
	"context"
	"errors"
	"fmt"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/policy"
)

// pageSize is how many objects one answer has at most.
const pageSize = 500

// Access says how people reach a cluster.
type Access struct {
	Kubeconfig string // empty: as kubectl finds it, or as a pod of the cluster
	Context    string // of the kubeconfig; empty: the current one
	UserAgent  string
}

func (a Access) config() (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = a.Kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: a.Context}).ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, errors.New("API server: no kubeconfig is set: name one with --kubeconfig")
	}
	if err != nil {
		return nil, fmt.Errorf("API server: kubeconfig: %w", err)
	}
	config.UserAgent = a.UserAgent
	return config, nil
}

// Read reads once what policies are about: Namespaces, Pods, Services, PeerAuthentications and DestinationRules of all
// namespaces. Services are without their endpoints. It needs permission to list each of them; a kind of policy that the
// cluster does not have is none of it.
func Read(ctx context.Context, a Access) (source.Contents, error) {
	config, err := a.config()
	if err != nil {
		return source.Contents{}, err
	}
	return readAll(ctx, config)
}

func readAll(ctx context.Context, config *rest.Config) (source.Contents, error) {
	c, err := newClients(config)
	if err != nil {
		return source.Contents{}, err
	}
	var all source.Contents
	labels := &labelSets{}
	for _, r := range []struct {
		resource string
		list     runtime.Object
		convert  converter
		add      func(any)
	}{
		{"namespaces", &core.NamespaceList{}, convertNamespace, func(v any) { all.Namespaces = append(all.Namespaces, *v.(*source.Namespace)) }},
		{"services", &core.ServiceList{}, convertService, func(v any) { all.Services = append(all.Services, v.(*service).Service) }},
		{"pods", &core.PodList{}, inFull(labels), func(v any) { all.Pods = append(all.Pods, *v.(*source.Pod)) }},
	} {
		at, err := c.core(core.SchemeGroupVersion, r.resource, r.list)
		if err != nil {
			return source.Contents{}, err
		}
		if err := readPages(ctx, r.resource, at, r.convert, func(_ objectKey, v any) { r.add(v) }); err != nil {
			return source.Contents{}, err
		}
	}
	policies, rules := istioReader[policy.PeerAuthentication]{kind: "PeerAuthentication"}, istioReader[policy.DestinationRule]{kind: "DestinationRule"}
	if err := policies.read(ctx, c, "security.istio.io", "peerauthentications", convertPolicy, "v1", "v1beta1"); err != nil {
		return source.Contents{}, err
	}
	if err := rules.read(ctx, c, "networking.istio.io", "destinationrules", convertRule, "v1", "v1beta1", "v1alpha3"); err != nil {
		return source.Contents{}, err
	}
	all.Policies, all.Rules = policies.good, rules.good
	all.Problems = append(policies.problems, rules.problems...)
	all.UnreadablePolicies = policies.unreadable
	return all, nil
}

// inFull keeps all of a pod, as an agent does of those of its own node.
func inFull(labels *labelSets) converter {
	return func(o runtime.Object) any {
		k, ok := o.(*core.Pod)
		if !ok {
			return nil
		}
		return podConverter{k.Spec.NodeName, labels}.convert(k)
	}
}

// istioReader collects the objects of one Istio kind.
type istioReader[T any] struct {
	kind       string
	good       []T
	problems   []source.Problem
	unreadable []string
}

func (r *istioReader[T]) read(ctx context.Context, c *clients, group, resource string, convert converter, preferred ...string) error {
	v := versions{optional: true, group: group, resource: resource, preferred: preferred, client: c.plain}
	version, err := v.served(ctx, true)
	if errors.Is(err, errNotServed) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("API server: %s.%s: %w", resource, group, err)
	}
	at := c.custom(schema.GroupVersionResource{Group: group, Version: version, Resource: resource})
	return readPages(ctx, resource+"."+group, at, convert, r.add)
}

func (r *istioReader[T]) add(k objectKey, v any) {
	p := v.(parsed[T])
	if p.err != nil {
		r.problems = append(r.problems, source.Problem{Object: r.kind + " " + k.String(), Err: p.err})
		r.unreadable = append(r.unreadable, k.namespace)
		return
	}
	r.good = append(r.good, *p.good)
}

// readPages reads a list page by page. One that was too slow to be read as it was begins again, once.
func readPages(ctx context.Context, resource string, at endpoint, convert converter, add func(objectKey, any)) error {
	var all []*record
	again := true
	for next := ""; ; {
		page, err := readPage(ctx, at, convert, next)
		if apierrors.IsResourceExpired(err) && again && next != "" {
			all, next, again = nil, "", false
			continue
		}
		if err != nil {
			return fmt.Errorf("API server: list %s: %w", resource, err)
		}
		for _, o := range page.Items {
			if r, ok := o.(*record); ok && r.value != nil {
				all = append(all, r)
			}
		}
		if next = page.Continue; next == "" {
			break
		}
	}
	for _, r := range all {
		add(r.key, r.value)
	}
	return nil
}

func readPage(ctx context.Context, at endpoint, convert converter, next string) (*recordList, error) {
	ctx, cancel := context.WithTimeout(ctx, discoveryTimeout)
	defer cancel()
	list, err := at.list(ctx, metav1.ListOptions{Limit: pageSize, Continue: next})
	if err != nil {
		return nil, err
	}
	return newRecordList(list, convert)
}
