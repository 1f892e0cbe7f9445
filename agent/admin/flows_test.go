package admin

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/agent/observe"
	"github.com/culvert-mesh/culvert/policy"
)

// watcher is the part of a fake agent that tells what it sees.
type watcher struct {
	after  uint64
	wait   time.Duration
	asked  string
	window time.Duration
	err    error
}

func (w *watcher) Flows(_ context.Context, after uint64, wait time.Duration) (*FlowList, error) {
	w.after, w.wait = after, wait
	return &FlowList{Node: "n1", Flows: []observe.Event{{Sequence: 8, Carried: observe.Refused}}, Last: 8}, w.err
}

func (w *watcher) Readiness(_ context.Context, namespace string, window time.Duration) (*Readiness, error) {
	w.asked, w.window = namespace, window
	return &Readiness{Node: "n1"}, w.err
}

func (w *watcher) Bugreport(context.Context) (*Bugreport, error) {
	return &Bugreport{Node: "n1"}, w.err
}

func TestCallsAboutWhatIsSeen(t *testing.T) {
	tests := map[string]struct {
		err    error
		status int
		want   string
		check  func(w *watcher) bool
	}{
		pathFlows:                             {nil, 200, `"sequence":8`, func(w *watcher) bool { return w.after == 0 && w.wait == 0 }},
		pathFlows + "?since=7&wait=2s":        {nil, 200, `"last":8`, func(w *watcher) bool { return w.after == 7 && w.wait == 2*time.Second }},
		pathFlows + "?since=-1":               {nil, 400, "invalid syntax", nil},
		pathFlows + "?wait=26s":               {nil, 400, "wait: must be up to 25s", nil},
		pathFlows + "?wait=-1s":               {nil, 400, "wait: must be up to 25s", nil},
		pathFlows + "?pod=x":                  {nil, 400, `unknown parameter \"pod\"`, nil},
		pathFlows + "?wait=1s":                {observe.ErrTooManyFollowers, 500, "too many follow", nil},
		pathReadiness:                         {nil, 200, `"node":"n1"`, func(w *watcher) bool { return w.asked == "" && w.window == observe.DefaultWindow }},
		pathReadiness + "?namespace=a&window": {nil, 200, `"node":"n1"`, func(w *watcher) bool { return w.asked == "a" }},
		pathReadiness + "?window=0s":          {nil, 400, "window: must be positive", nil},
		pathReadiness + "?window=day":         {nil, 400, "invalid duration", nil},
		pathBugreport:                         {nil, 200, `"version":"v1"`, nil},
		pathBugreport + "?":                   {context.DeadlineExceeded, 504, "deadline", nil},
	}
	for path, tt := range tests {
		t.Run(path, func(t *testing.T) {
			w := &watcher{err: tt.err}
			mux, s := http.NewServeMux(), &server{version: "v1", log: slog.New(slog.DiscardHandler)}
			registerFlows(mux, s, w)
			registerReadiness(mux, s, w)
			registerBugreport(mux, s, w)
			answer := httptest.NewRecorder()
			mux.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, nil))
			if answer.Code != tt.status || !strings.Contains(answer.Body.String(), tt.want) {
				t.Errorf("%d: %s", answer.Code, answer.Body)
			}
			if tt.check != nil && !tt.check(w) {
				t.Errorf("asked %+v", w)
			}
		})
	}
}

func TestPoliciesPassAsTheyAre(t *testing.T) {
	for _, p := range []policy.PeerAuthentication{
		{Namespace: "a", Name: "unset"},
		{Namespace: "a", Name: "all", Created: time.Unix(1, 0).UTC(), Mode: policy.Strict, Selector: map[string]string{"a": "b"}, SelectorPresent: true,
			Ports: map[uint16]policy.Mode{80: policy.Disable, 81: policy.Unset}},
	} {
		text, err := json.Marshal(NewPolicy(&p))
		if err != nil {
			t.Fatal(err)
		}
		var w Policy
		if err := json.Unmarshal(text, &w); err != nil {
			t.Fatal(err)
		}
		got, err := w.Parse()
		if err != nil {
			t.Fatal(err)
		}
		a, b := policy.NewSet("", []policy.PeerAuthentication{p}), policy.NewSet("", []policy.PeerAuthentication{got})
		of := policy.Workload{Namespace: "a", Labels: map[string]string{"a": "b"}}
		if !a.Effective(of).Modes().Equal(b.Effective(of).Modes()) || !got.Created.Equal(p.Created) || len(got.Ports) != len(p.Ports) {
			t.Errorf("%+v became %+v", p, got)
		}
	}
	if _, err := (&Policy{Mode: "LAX"}).Parse(); err == nil {
		t.Error("a mode that does not exist is taken")
	}
}
