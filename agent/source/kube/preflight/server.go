package preflight

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/rest"
)

// Clocks that differ by less do no harm. Far beyond, certificates seem not to be valid yet, or no more.
const (
	clockWarning = 10 * time.Second
	clockFailed  = 5 * time.Minute
	maxAnswer    = 1 << 20
)

// server asks for the version, by a request of its own because the answer's Date tells the server's clock.
func (c *checker) server(ctx context.Context) (results []Result, reachable bool) {
	const check, needed = "API server", "everything"
	v, clock, err := c.version(ctx)
	if err != nil {
		return []Result{{check, Failed, err.Error(), needed}}, false
	}
	results = []Result{{check, OK, fmt.Sprintf("%s at %s", v.GitVersion, c.config.Host), needed}}
	return append(results, clock), true
}

func (c *checker) version(ctx context.Context) (*version.Info, Result, error) {
	clock := Result{Check: "clock", Needed: "certificates; which of two policies is the older"}
	client, err := rest.HTTPClientFor(c.config)
	if err != nil {
		return nil, clock, fmt.Errorf("client: %w", err)
	}
	base, _, err := rest.DefaultServerUrlFor(c.config)
	if err != nil {
		return nil, clock, fmt.Errorf("address: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, base.JoinPath("version").String(), nil)
	if err != nil {
		return nil, clock, fmt.Errorf("request: %w", err)
	}
	begin := time.Now()
	answer, err := client.Do(request)
	if err != nil {
		return nil, clock, fmt.Errorf("not reachable: %w", err)
	}
	defer answer.Body.Close()
	end := time.Now()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return nil, clock, fmt.Errorf("answer: %w", err)
	}
	if answer.StatusCode == http.StatusUnauthorized {
		return nil, clock, errors.New("not authenticated: is the token or the certificate expired?")
	}
	if answer.StatusCode != http.StatusOK {
		return nil, clock, fmt.Errorf("answers %s: %s", answer.Status, short(string(body)))
	}
	var v version.Info
	if err := json.Unmarshal(body, &v); err != nil || v.GitVersion == "" {
		return nil, clock, errors.New("what answers is no API server")
	}
	return &v, clockResult(clock, answer.Header.Get("Date"), begin, end), nil
}

// clockResult compares the server's Date, which has whole seconds, with when it was asked.
func clockResult(r Result, date string, begin, end time.Time) Result {
	at, err := http.ParseTime(date)
	if err != nil {
		r.State, r.Detail = Warning, "the API server tells no time"
		return r
	}
	// The server meant some moment within this second, and it was between begin and end.
	difference := time.Duration(0)
	switch latest := at.Add(time.Second); {
	case latest.Before(begin):
		difference = begin.Sub(latest)
	case at.After(end):
		difference = end.Sub(at)
	}
	r.State, r.Detail = OK, "agrees with the API server's"
	ahead := "ahead of"
	if difference < 0 {
		difference, ahead = -difference, "behind"
	}
	if difference > clockWarning {
		r.State, r.Detail = Warning, fmt.Sprintf("%s %s the API server's", difference.Round(time.Second), ahead)
	}
	if difference > clockFailed {
		r.State = Failed
	}
	return r
}

// short makes one short line of an answer.
func short(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + " ..."
	}
	return s
}
