package kube

import (
	"context"
	"fmt"
	"slices"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
)

// whatIsLost says which Secret has to be restored by somebody, if any.
func (r *Rotor) whatIsLost(ctx context.Context, k kind) (string, error) {
	const restore = "restore it from a backup; or, to start anew with a root that nobody trusts yet, scale the CA to 0, delete ConfigMap " +
		ConfigMapName + " in this namespace and both Secrets, and scale it up again"
	switch {
	case k == orphan:
		return "Secret " + RootSecretName + ", with the root's key, was deleted: nothing is rotated, and the CA ends when the certificate" +
			" in Secret " + SecretName + " expires; " + restore, nil
	case k != none:
		return "", nil
	case r.loaded():
		return "both Secrets of the CA were deleted: this replica goes on with what it has, and one that starts has nothing; " + restore, nil
	}
	published, err := r.published(ctx)
	if err != nil || !published {
		return "", err
	}
	return "both Secrets of the CA are gone, and no new root is made, because ConfigMap " + ConfigMapName + " in this namespace says" +
		" that there was one which all trust; " + restore, nil
}

// published reports whether the namespace's ConfigMap holds a bundle. It is listed because RBAC grants that for watching.
func (r *Rotor) published(ctx context.Context) (bool, error) {
	selector := fields.OneTermEqualSelector(meta.ObjectNameField, ConfigMapName).String()
	list, err := r.client.CoreV1().ConfigMaps(r.namespace).List(ctx, meta.ListOptions{FieldSelector: selector})
	if err != nil {
		return false, fmt.Errorf("ConfigMap %s/%s (list configmaps): %w", r.namespace, ConfigMapName, err)
	}
	return slices.ContainsFunc(list.Items, func(m core.ConfigMap) bool {
		return m.Name == ConfigMapName && m.Data[ca.RootsName] != ""
	}), nil
}

// Lost says which Secret somebody has to restore, or "". Only the leader knows.
func (r *Rotor) Lost() string {
	if s := r.lost.Load(); s != nil {
		return *s
	}
	return ""
}

// lose says it again and again: an expiry comes long after it.
func (r *Rotor) lose(what string) {
	r.lost.Store(&what)
	r.metrics.setLost(what != "")
	if what != "" && (r.said != what || time.Since(r.saidAt) >= lookAgain) {
		r.said, r.saidAt = what, time.Now()
		r.log.Error("CA rotation: "+what, "namespace", r.namespace)
	}
}
