package report

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// conditionType is ours alone: Istio keeps conditions in the same list.
	conditionType   = "culvert.dev/Accepted"
	reasonValid     = "Valid"
	reasonInvalid   = "Invalid"
	acceptedMessage = "the policy is valid and used by the agents"
)

// errNewer says that the object is not the one that the verdict is about.
var errNewer = errors.New("the object changed meanwhile")

// standing reads our condition in an object.
func standing(o *unstructured.Unstructured) (verdict, bool) {
	for _, c := range conditions(o) {
		m, ok := c.(map[string]any)
		if !ok || m["type"] != conditionType {
			continue
		}
		message, _ := m["message"].(string)
		v := verdict{uid: string(o.GetUID()), accepted: m["status"] == string(metav1.ConditionTrue), message: message}
		switch g := m["observedGeneration"].(type) { // the CRD allows text as well
		case int64:
			v.generation = g
		case string:
			_, _ = fmt.Sscan(g, &v.generation)
		}
		return v, true
	}
	return verdict{}, false
}

func conditions(o *unstructured.Unstructured) []any {
	all, _, _ := unstructured.NestedFieldNoCopy(o.Object, "status", "conditions")
	list, _ := all.([]any)
	return list
}

// read gets the object as it is now. By a list of one, because agents may list policies anyway.
func (b *board) read(ctx context.Context, t task) (*unstructured.Unstructured, error) {
	page, err := b.page(ctx, t.shelf, t.namespace, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", t.name).String(),
	})
	if err != nil {
		return nil, err
	}
	for i := range page.Items {
		o := &page.Items[i]
		switch {
		case o.GetName() != t.name:
		case t.want.uid != "" && string(o.GetUID()) != t.want.uid, o.GetGeneration() > t.want.generation:
			return nil, errNewer
		default:
			return o, nil
		}
	}
	return nil, apierrors.NewNotFound(t.gvr.GroupResource(), t.name)
}

// patch puts our condition among the others. The list is replaced as a whole, so the patch holds for the version
// that was read only.
func (b *board) patch(ctx context.Context, t task, o *unstructured.Unstructured) error {
	now := time.Now().UTC().Format(time.RFC3339)
	ours := map[string]any{
		"type": conditionType, "status": string(metav1.ConditionTrue), "reason": reasonValid,
		"message": t.want.message, "observedGeneration": t.want.generation, "lastTransitionTime": now,
	}
	if !t.want.accepted {
		ours["status"], ours["reason"] = string(metav1.ConditionFalse), reasonInvalid
	}
	if before, ok := standing(o); ok && before.covers(t.want) {
		return nil
	}
	var all []any
	for _, c := range conditions(o) {
		if m, ok := c.(map[string]any); ok && m["type"] == conditionType {
			if since, ok := m["lastTransitionTime"].(string); ok && m["status"] == ours["status"] {
				ours["lastTransitionTime"] = since
			}
			continue
		}
		all = append(all, c)
	}
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": o.GetResourceVersion()},
		"status":   map[string]any{"conditions": append(all, ours)},
	})
	if err != nil {
		return fmt.Errorf("condition: %w", err)
	}
	ctx, stop := context.WithTimeout(ctx, requestTimeout)
	defer stop()
	_, err = b.Dynamic.Resource(t.gvr).Namespace(t.namespace).Patch(ctx, t.name, types.MergePatchType, body,
		metav1.PatchOptions{}, "status")
	if err != nil {
		return fmt.Errorf("condition of %s %s/%s: %w", t.kind, t.namespace, t.name, err)
	}
	b.writes.Add(1)
	return nil
}
