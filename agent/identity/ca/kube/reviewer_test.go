package kube

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	authentication "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/culvert-mesh/culvert/agent/identity/ca"
)

// reviews is an API server that answers TokenReviews.
type reviews struct {
	asked  atomic.Int64
	status authentication.TokenReviewStatus
	err    error
	delay  time.Duration
}

func (r *reviews) reviewer() *Reviewer {
	client := fake.NewSimpleClientset()
	client.PrependReactor("create", "tokenreviews", func(clienttesting.Action) (bool, runtime.Object, error) {
		r.asked.Add(1)
		time.Sleep(r.delay)
		return true, &authentication.TokenReview{Status: r.status}, r.err
	})
	return NewReviewer(FromInterface(client), []string{"culvert-ca"}, NewMetrics())
}

func bound() authentication.TokenReviewStatus {
	return authentication.TokenReviewStatus{
		Authenticated: true, Audiences: []string{"culvert-ca"},
		User: authentication.UserInfo{
			Username: "system:serviceaccount:culvert-system:culvert-agent",
			Extra: map[string]authentication.ExtraValue{
				podNameKey: {"agent-1"}, podUIDKey: {"uid-1"}, nodeNameKey: {"node-a"},
			},
		},
	}
}

func TestAuthenticate(t *testing.T) {
	altered := func(f func(*authentication.TokenReviewStatus)) authentication.TokenReviewStatus {
		s := bound()
		f(&s)
		return s
	}
	tests := []struct {
		name   string
		status authentication.TokenReviewStatus
		want   string // in the error
	}{
		{"bound to pod and node", bound(), ""},
		{"not authenticated", authentication.TokenReviewStatus{Error: "token has expired"}, "token has expired"},
		{"another audience", altered(func(s *authentication.TokenReviewStatus) { s.Audiences = []string{"vault"} }), `audience ["vault"]`},
		{"API server that knows no audiences", altered(func(s *authentication.TokenReviewStatus) { s.Audiences = nil }), "audience []"},
		{"a user", altered(func(s *authentication.TokenReviewStatus) { s.User.Username = "admin" }), "no service account"},
		{"a user that looks similar", altered(func(s *authentication.TokenReviewStatus) { s.User.Username = "system:serviceaccount:x" }), "no service account"},
		{"no node", altered(func(s *authentication.TokenReviewStatus) { delete(s.User.Extra, nodeNameKey) }), nodeNameKey},
		{"two nodes", altered(func(s *authentication.TokenReviewStatus) { s.User.Extra[nodeNameKey] = []string{"a", "b"} }), nodeNameKey},
		{"not bound to a pod", altered(func(s *authentication.TokenReviewStatus) { delete(s.User.Extra, podUIDKey) }), podUIDKey},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := (&reviews{status: test.status}).reviewer()
			got, err := r.Authenticate(context.Background(), "secret-token", "10.0.0.1")
			if test.want == "" {
				want := ca.Caller{Namespace: "culvert-system", ServiceAccount: "culvert-agent", Pod: "agent-1", PodUID: "uid-1", Node: "node-a"}
				if err != nil || got != want {
					t.Fatalf("%+v, %v; want %+v", got, err, want)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) || errors.Is(err, ca.ErrUnavailable) {
				t.Fatalf("error %v, want %q in it", err, test.want)
			}
			if strings.Contains(err.Error(), "secret-token") {
				t.Fatalf("error %q quotes the token", err)
			}
		})
	}
}

func TestOneReviewForManyWhoAskAtOnce(t *testing.T) {
	api := &reviews{status: bound(), delay: 50 * time.Millisecond}
	r := api.reviewer()
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			if _, err := r.Authenticate(context.Background(), "token", "10.0.0.1"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := api.asked.Load(); n != 1 {
		t.Fatalf("%d reviews for one token, want 1", n)
	}
}

func TestAnswerIsForgottenAfterItsTimeOrTheTokens(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	exp := func(in time.Duration) string {
		claims := fmt.Sprintf(`{"exp":%d}`, now.Add(in).Unix())
		return "h." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".s"
	}
	tests := []struct {
		name  string
		token string
		kept  time.Duration
	}{
		{"opaque token", "token", keepAnswer},
		{"long-lived", exp(time.Hour), keepAnswer},
		{"about to expire", exp(10 * time.Second), 10 * time.Second},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			api := &reviews{status: bound()}
			r := api.reviewer()
			var shift atomic.Int64
			r.answers.now = func() time.Time { return now.Add(time.Duration(shift.Load())) }
			ask := func() int64 {
				if _, err := r.Authenticate(context.Background(), test.token, ""); err != nil {
					t.Fatal(err)
				}
				return api.asked.Load()
			}
			ask()
			shift.Store(int64(test.kept - time.Millisecond))
			if n := ask(); n != 1 {
				t.Fatalf("%d reviews just before %s", n, test.kept)
			}
			shift.Store(int64(test.kept))
			if n := ask(); n != 2 {
				t.Fatalf("%d reviews at %s, want a second", n, test.kept)
			}
		})
	}
}

func TestUnreachableAPIServerIsNoRefusalAndIsNotRemembered(t *testing.T) {
	api := &reviews{err: errors.New("connection refused")}
	r := api.reviewer()
	for range 2 {
		if _, err := r.Authenticate(context.Background(), "token", ""); !errors.Is(err, ca.ErrUnavailable) {
			t.Fatalf("error %v, want one that says to ask again", err)
		}
	}
	if n := api.asked.Load(); n != 2 {
		t.Fatalf("%d reviews, want 2", n)
	}
}

func TestGuessingIsHeldOffAndAnAgentBehindTheSameAddressGoesOn(t *testing.T) {
	api := &reviews{status: bound()}
	r := api.reviewer()
	if _, err := r.Authenticate(context.Background(), "agent", "10.0.0.1"); err != nil {
		t.Fatal(err)
	}
	api.status = authentication.TokenReviewStatus{}
	for i := range 1000 {
		_, _ = r.Authenticate(context.Background(), fmt.Sprint("guess", i), "10.0.0.1")
	}
	if n := api.asked.Load(); n > 1+failureBurst+10 {
		t.Fatalf("%d reviews for 1,000 guesses, want about %d", n, failureBurst)
	}
	if _, err := r.Authenticate(context.Background(), "agent", "10.0.0.1"); err != nil {
		t.Fatalf("the agent's own token: %v", err)
	}
	if n := len(r.answers.known); n > maxAnswers {
		t.Fatalf("%d answers kept", n)
	}
}

func TestGuessingAtOnceGetsNoMore(t *testing.T) {
	api := &reviews{delay: time.Millisecond}
	r := api.reviewer()
	var wg sync.WaitGroup
	for i := range 500 {
		wg.Go(func() { _, _ = r.Authenticate(t.Context(), fmt.Sprint("guess", i), "10.0.0.66") })
	}
	wg.Wait()
	if n := api.asked.Load(); n > failureBurst+10 {
		t.Errorf("%d reviews for 500 guesses at once, want about %d", n, failureBurst)
	}
}

func TestManyWhoGuessLeaveOthersTheirReviews(t *testing.T) {
	r := (&reviews{}).reviewer()
	for i := range 4 * reviewBurst {
		_, _ = r.Authenticate(t.Context(), fmt.Sprint("guess", i), fmt.Sprint("10.0.1.", i%60))
	}
	for i := range 100 {
		if _, err := r.Authenticate(t.Context(), fmt.Sprint("agent", i), fmt.Sprint("10.0.2.", i)); errors.Is(err, ca.ErrUnavailable) {
			t.Fatalf("agent %d is held back: %v", i, err)
		}
	}
}

func TestReviewsThatProveSomethingOrEndWithoutAnAnswerTakeNoShare(t *testing.T) {
	for _, api := range []*reviews{{status: bound()}, {err: errors.New("connection refused")}} {
		r := api.reviewer()
		for i := range 3 * failureBurst {
			_, _ = r.Authenticate(t.Context(), fmt.Sprint("agent", i), "10.0.0.1")
		}
		if n := api.asked.Load(); n != 3*failureBurst {
			t.Errorf("%d reviews, want %d", n, 3*failureBurst)
		}
	}
}

func TestMemoryForAnswersIsBounded(t *testing.T) {
	s := newAnswers()
	for i := range maxAnswers + 1000 {
		if _, err := s.get(context.Background(), fmt.Sprint(i), func() (answer, error) { return answer{}, nil }); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(s.known); n > maxAnswers {
		t.Fatalf("%d answers kept, want at most %d", n, maxAnswers)
	}
}
