package admin

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/culvert-mesh/culvert/agent/observe"
)

const (
	pathFlows = "/v1/flows"
	// MaxFlowsWait is how long a call may wait for something to happen.
	MaxFlowsWait = 25 * time.Second
)

// Flows is the part of a Node that tells of connections.
type Flows interface {
	// Flows returns what came after the event with that number; 0 is all that is remembered. With wait it waits for
	// something to come; none when nothing does.
	Flows(ctx context.Context, after uint64, wait time.Duration) (*FlowList, error)
}

// FlowList is what happened on a node.
type FlowList struct {
	Answer
	Node   string          `json:"node"`
	Flows  []observe.Event `json:"flows"`
	Last   uint64          `json:"last"`   // the number of the latest: what comes next comes after it
	Missed uint64          `json:"missed"` // came in between, and are remembered no more
	Lost   uint64          `json:"lost"`   // never reached the agent, since it was started
}

// Flows implements Flows.
func (c *Client) Flows(ctx context.Context, after uint64, wait time.Duration) (*FlowList, error) {
	ctx, cancel := context.WithTimeout(ctx, wait+certificatesTimeout)
	defer cancel()
	q := url.Values{"since": {strconv.FormatUint(after, 10)}}
	if wait > 0 {
		q.Set("wait", wait.String())
	}
	out := &FlowList{}
	return out, c.call(ctx, http.MethodGet, pathFlows+"?"+q.Encode(), nil, out)
}

// registerFlows adds the call.
func registerFlows(mux *http.ServeMux, s *server, node Flows) {
	mux.Handle("GET "+pathFlows, query(s, func(ctx context.Context, q url.Values) (*FlowList, error) {
		var after uint64
		var wait time.Duration
		err := onlyKnown(q, "since", "wait")
		if v := q.Get("since"); err == nil && v != "" {
			after, err = strconv.ParseUint(v, 10, 64)
		}
		if v := q.Get("wait"); err == nil && v != "" {
			wait, err = time.ParseDuration(v)
		}
		if err == nil && (wait < 0 || wait > MaxFlowsWait) {
			err = fmt.Errorf("wait: must be up to %s", MaxFlowsWait)
		}
		if err != nil {
			return nil, errBadRequest(err.Error())
		}
		l, err := node.Flows(ctx, after, wait)
		if err == nil {
			l.Answer = s.answer()
		}
		return l, err
	}))
}

// query makes a call of what is asked for in the URL.
func query[Out any](s *server, call func(context.Context, url.Values) (Out, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handle(s, func(ctx context.Context, _ struct{}) (Out, error) { return call(ctx, r.URL.Query()) }).ServeHTTP(w, r)
	})
}

// onlyKnown refuses what is not understood: it is not to be half done.
func onlyKnown(q url.Values, names ...string) error {
	known := map[string]bool{}
	for _, name := range names {
		known[name] = true
	}
	for name := range q {
		if !known[name] {
			return fmt.Errorf("unknown parameter %.100q", name)
		}
	}
	return nil
}
