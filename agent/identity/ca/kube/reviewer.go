package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"
	authentication "k8s.io/api/authentication/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
	"github.com/culvert-mesh/culvert/agent/identity/ca/limit"
)

const (
	accountPrefix = "system:serviceaccount:"
	podNameKey    = "authentication.kubernetes.io/pod-name"
	podUIDKey     = "authentication.kubernetes.io/pod-uid"
	nodeNameKey   = "authentication.kubernetes.io/node-name"
)

const (
	reviewTimeout = 5 * time.Second
	// A thousand nodes ask again each minute, and all at once when the CA restarts.
	reviewsPerSecond = 200
	reviewBurst      = 500
	// Addresses that have just had tokens reviewed which proved nothing share a part of it.
	suspectReviewsPerSecond = 100
	suspectReviewBurst      = 250
	// An address whose tokens prove nothing may have that many reviewed. What is remembered is not held up by it, so
	// an agent goes on while a pod that shares its address guesses.
	failuresPerSecond = 5
	failureBurst      = 50
)

// Reviewer asks the API server who holds a token, and remembers the answer for a short time. Safe for concurrent
// use.
type Reviewer struct {
	client    kubernetes.Interface
	audiences []string
	answers   *answers
	limit     *rate.Limiter
	suspects  *rate.Limiter
	failures  *limit.Keyed // by address
	metrics   *Metrics
}

// NewReviewer returns a Reviewer of tokens that were issued for one of the audiences.
func NewReviewer(c *Client, audiences []string, m *Metrics) *Reviewer {
	return &Reviewer{
		client: c.api, audiences: audiences, answers: newAnswers(),
		limit:    rate.NewLimiter(reviewsPerSecond, reviewBurst),
		suspects: rate.NewLimiter(suspectReviewsPerSecond, suspectReviewBurst),
		failures: limit.New(failuresPerSecond, failureBurst),
		metrics:  m,
	}
}

// Authenticate returns the pod that the token is bound to. An error that is not ca.ErrUnavailable says why the token
// proves nothing; it never quotes the token.
func (r *Reviewer) Authenticate(ctx context.Context, token, from string) (ca.Caller, error) {
	a, err := r.answers.get(ctx, token, func() (answer, error) {
		began := time.Now()
		a, err := r.review(ctx, token, from)
		r.metrics.reviewed(time.Since(began), err)
		return a, err
	})
	if err != nil {
		return ca.Caller{}, err
	}
	return a.caller, a.refusal
}

// review asks, if the address may have asked. What that takes of the address's share is given back unless the token
// proves nothing; those who guess at the same time get no more than those who guess one after the other.
func (r *Reviewer) review(ctx context.Context, token, from string) (answer, error) {
	suspect := !r.failures.Untouched(from)
	if !r.failures.Allow(from) {
		return answer{}, fmt.Errorf("token review: too many tokens from %s proved nothing: %w", from, ca.ErrUnavailable)
	}
	a, err := r.ask(ctx, token, suspect)
	if err != nil || a.refusal == nil {
		r.failures.GiveBack(from)
	}
	return a, err
}

// ask has the API server review a token. Its error is that there was no answer.
func (r *Reviewer) ask(ctx context.Context, token string, suspect bool) (answer, error) {
	if suspect && !r.suspects.Allow() || !r.limit.Allow() {
		return answer{}, fmt.Errorf("token review: more than %d a second: %w", reviewsPerSecond, ca.ErrUnavailable)
	}
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	review, err := r.client.AuthenticationV1().TokenReviews().Create(ctx, &authentication.TokenReview{
		Spec: authentication.TokenReviewSpec{Token: token, Audiences: r.audiences},
	}, meta.CreateOptions{})
	if err != nil {
		return answer{}, fmt.Errorf("token review (create tokenreviews.authentication.k8s.io): %w: %w", err, ca.ErrUnavailable)
	}
	caller, err := r.caller(&review.Status)
	if err != nil {
		return answer{refusal: err}, nil
	}
	return answer{caller: caller}, nil
}

// caller reads what the API server says of a token.
func (r *Reviewer) caller(s *authentication.TokenReviewStatus) (ca.Caller, error) {
	if !s.Authenticated {
		if s.Error != "" {
			return ca.Caller{}, fmt.Errorf("token: not authenticated: %s", s.Error)
		}
		return ca.Caller{}, errors.New("token: not authenticated")
	}
	// An API server that knows nothing of audiences answers with none: the token may be for anybody.
	if !slices.ContainsFunc(s.Audiences, func(a string) bool { return slices.Contains(r.audiences, a) }) {
		return ca.Caller{}, fmt.Errorf("token: is for audience %q, want %q", s.Audiences, r.audiences)
	}
	account, ok := strings.CutPrefix(s.User.Username, accountPrefix)
	namespace, name, split := strings.Cut(account, ":")
	if !ok || !split || namespace == "" || name == "" {
		return ca.Caller{}, fmt.Errorf("token: is that of %q, which is no service account", s.User.Username)
	}
	c := ca.Caller{Namespace: namespace, ServiceAccount: name}
	for _, field := range []struct {
		key  string
		into *string
	}{{podNameKey, &c.Pod}, {podUIDKey, &c.PodUID}, {nodeNameKey, &c.Node}} {
		values := s.User.Extra[field.key]
		if len(values) != 1 || values[0] == "" {
			return ca.Caller{}, fmt.Errorf("token: the API server's answer has no %s: the token of %s/%s is not bound to a pod"+
				" (or Kubernetes is older than 1.30)", field.key, namespace, name)
		}
		*field.into = values[0]
	}
	return c, nil
}
