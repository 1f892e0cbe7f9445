package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// discoveryTimeout bounds one question about what is served.
const discoveryTimeout = 20 * time.Second

// errNotServed means that the API server was asked and does not have the resource: not that it could not answer.
var errNotServed = errors.New("the API server does not serve the resource")

// versions is one resource in the versions in which it may be served.
type versions struct {
	optional  bool // it need not be served
	group     string
	resource  string
	preferred []string // the best first; a single one when it is not optional
	client    rest.Interface
	open      func(version string) endpoint
}

// served returns the best version that is served, or errNotServed. Nobody's silence, nor a refusal, counts as an
// answer. Once it is known that the resource is absent, sure may be false: a single question then does.
func (v *versions) served(ctx context.Context, sure bool) (string, error) {
	var group metav1.APIGroup
	err := v.get(ctx, &group, "/apis/"+v.group)
	if err != nil && !apierrors.IsNotFound(err) {
		return "", err
	}
	for _, version := range v.preferred {
		offered := slices.ContainsFunc(group.Versions, func(o metav1.GroupVersionForDiscovery) bool { return o.Version == version })
		if !offered {
			continue
		}
		if has, err := v.has(ctx, version); err != nil || has {
			return version, err
		}
	}
	if !sure {
		return "", errNotServed
	}
	return v.confirm(ctx)
}

// has reports whether that version of the group has the resource.
func (v *versions) has(ctx context.Context, version string) (bool, error) {
	var list metav1.APIResourceList
	err := v.get(ctx, &list, "/apis/"+v.group+"/"+version)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == v.resource }), err
}

// confirm makes sure that the resource is absent. Discovery lags behind while a server starts and knows no CRD yet,
// but then a LIST is answered with 503; and what answers 404 to everything, such as a proxy, has no list of groups.
func (v *versions) confirm(ctx context.Context) (string, error) {
	for _, version := range v.preferred {
		var list struct {
			Kind string `json:"kind"`
		}
		err := v.get(ctx, &list, "/apis/"+v.group+"/"+version+"/"+v.resource)
		if err == nil && list.Kind != "" {
			return version, nil
		}
		if !apierrors.IsNotFound(err) {
			return "", fmt.Errorf("%s in %s is neither there nor absent: %w", v.resource, version, orNoList(err))
		}
	}
	var groups metav1.APIGroupList
	if err := v.get(ctx, &groups, "/apis"); err != nil {
		return "", err
	}
	if len(groups.Groups) == 0 {
		return "", errors.New("the API server lists no groups at all")
	}
	return "", errNotServed
}

func orNoList(err error) error {
	if err == nil {
		return errors.New("the answer is no list")
	}
	return err
}

func (v *versions) get(ctx context.Context, into any, path string) error {
	ctx, cancel := context.WithTimeout(ctx, discoveryTimeout)
	defer cancel()
	text, err := v.client.Get().AbsPath(path).Param("limit", "1").Do(ctx).Raw()
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	return nil
}
