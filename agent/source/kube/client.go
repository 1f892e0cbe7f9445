package kube

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport"
)

const (
	// The feeds make few requests: these bounds are for when much fails at once.
	requestsPerSecond = 20
	requestsAtOnce    = 40

	protobuf  = "application/vnd.kubernetes.protobuf"
	userAgent = "culvert-agent"
)

// clients are the ways to the API server. They share its connections.
type clients struct {
	config   *rest.Config // for protobuf
	codecs   serializer.CodecFactory
	params   runtime.ParameterCodec
	dynamic  dynamic.Interface
	metadata metadata.Interface
	plain    rest.Interface // JSON, for discovery
}

func newClients(base *rest.Config) (*clients, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{core.AddToScheme, discovery.AddToScheme, networking.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("types of Kubernetes: %w", err)
		}
	}
	config := rest.CopyConfig(base)
	config.QPS, config.Burst, config.RateLimiter = requestsPerSecond, requestsAtOnce, nil
	config.Timeout = 0 // a watch lasts; lists have their own limit
	if config.UserAgent == "" {
		config.UserAgent = userAgent
	}
	if file := config.BearerTokenFile; file != "" {
		// By itself the file is read again once a minute; so it is also when its token was refused.
		config.BearerToken, config.BearerTokenFile = "", ""
		config.Wrap(transport.ResettableTokenSourceWrapTransport(transport.NewCachedFileTokenSource(file)))
	}
	c := &clients{config: config, codecs: serializer.NewCodecFactory(scheme), params: runtime.NewParameterCodec(scheme)}
	var err error
	if c.dynamic, err = dynamic.NewForConfig(dynamic.ConfigFor(config)); err != nil {
		return nil, fmt.Errorf("client for Istio's types: %w", err)
	}
	if c.metadata, err = metadata.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("client for metadata: %w", err)
	}
	plain := rest.CopyConfig(config)
	plain.ContentType, plain.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON
	plain.NegotiatedSerializer = c.codecs.WithoutConversion()
	plain.GroupVersion = &schema.GroupVersion{}
	if c.plain, err = rest.UnversionedRESTClientFor(plain); err != nil {
		return nil, fmt.Errorf("client for discovery: %w", err)
	}
	config.ContentType, config.AcceptContentTypes = protobuf, protobuf+","+runtime.ContentTypeJSON
	config.NegotiatedSerializer = c.codecs.WithoutConversion()
	return c, nil
}

// core is one of Kubernetes' own resources, over protobuf. list is an empty list of it.
func (c *clients) core(gv schema.GroupVersion, resource string, list runtime.Object) (endpoint, error) {
	config := rest.CopyConfig(c.config)
	config.GroupVersion, config.APIPath = &gv, "/apis"
	if gv.Group == "" {
		config.APIPath = "/api"
	}
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return endpoint{}, fmt.Errorf("client for %s: %w", resource, err)
	}
	return endpoint{
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			// Not Into: it takes an answer of another kind for an empty list.
			got, err := client.Get().Resource(resource).VersionedParams(&o, c.params).Do(ctx).Get()
			if err == nil && reflect.TypeOf(got) != reflect.TypeOf(list) {
				err = fmt.Errorf("list of %s: the answer is a %T", resource, got)
			}
			return got, err
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			return client.Get().Resource(resource).VersionedParams(&o, c.params).Timeout(seconds(o.TimeoutSeconds)).Watch(ctx)
		},
	}, nil
}

func seconds(s *int64) time.Duration {
	if s == nil {
		return 0
	}
	return time.Duration(*s) * time.Second
}

// custom is a resource without a type of its own here: JSON, which is read object by object.
func (c *clients) custom(gvr schema.GroupVersionResource) endpoint {
	client := c.dynamic.Resource(gvr)
	return endpoint{
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := client.List(ctx, o)
			if err != nil {
				return nil, err
			}
			if !strings.HasSuffix(list.GetKind(), "List") {
				return nil, fmt.Errorf("list of %s: the answer is a %q", gvr.Resource, list.GetKind())
			}
			return list, nil
		},
		watch: client.Watch,
	}
}

// metadataOf is the metadata of one object.
func (c *clients) metadataOf(gvr schema.GroupVersionResource, namespace, name string) endpoint {
	var client metadata.ResourceInterface = c.metadata.Resource(gvr)
	if namespace != "" {
		client = c.metadata.Resource(gvr).Namespace(namespace)
	}
	selector := "metadata.name=" + name
	return endpoint{
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector
			list, err := client.List(ctx, o)
			if err != nil {
				return nil, err
			}
			return list, nil
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = selector
			return client.Watch(ctx, o)
		},
	}
}
