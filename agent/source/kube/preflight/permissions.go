package preflight

import (
	"context"
	"fmt"
	"strings"

	"golang.org/x/sync/errgroup"
	authorization "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// permissions asks for every Need on its own: what is missing has a name then.
func (c *checker) permissions(ctx context.Context) []Result {
	needs := Needs(c.DaemonSet)
	results := make([]Result, len(needs))
	var asked errgroup.Group
	asked.SetLimit(concurrency)
	for i, n := range needs {
		asked.Go(func() error {
			results[i] = c.permission(ctx, n)
			return nil
		})
	}
	_ = asked.Wait() // none returns an error
	return results
}

func (c *checker) permission(ctx context.Context, n Need) Result {
	r := Result{Check: "may " + n.String(), State: OK, Needed: n.Reason}
	resource, sub, _ := strings.Cut(n.Resource, "/")
	attributes := &authorization.ResourceAttributes{
		Group: n.Group, Resource: resource, Subresource: sub, Verb: n.Verb, Name: n.Name,
	}
	if n.Own {
		attributes.Namespace = c.Namespace
	}
	answer, err := c.review(ctx, attributes)
	switch {
	case err != nil:
		r.State, r.Detail = Warning, "not known: "+short(err.Error())
	case !answer.Allowed:
		r.State, r.Detail = Failed, "permission missing"
		if n.Optional {
			r.State = Warning
		}
		if answer.EvaluationError != "" {
			r.Detail += ": " + short(answer.EvaluationError)
		}
	}
	return r
}

func (c *checker) review(ctx context.Context, a *authorization.ResourceAttributes) (*authorization.SubjectAccessReviewStatus, error) {
	reviews := c.client.AuthorizationV1()
	if c.ServiceAccount == "" {
		answer, err := reviews.SelfSubjectAccessReviews().Create(ctx, &authorization.SelfSubjectAccessReview{
			Spec: authorization.SelfSubjectAccessReviewSpec{ResourceAttributes: a},
		}, metav1.CreateOptions{})
		if err != nil {
			return nil, err
		}
		return &answer.Status, nil
	}
	answer, err := reviews.SubjectAccessReviews().Create(ctx, &authorization.SubjectAccessReview{
		Spec: authorization.SubjectAccessReviewSpec{
			ResourceAttributes: a,
			User:               fmt.Sprintf("system:serviceaccount:%s:%s", c.Namespace, c.ServiceAccount),
			Groups:             []string{"system:serviceaccounts", "system:serviceaccounts:" + c.Namespace, "system:authenticated"},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	return &answer.Status, nil
}
