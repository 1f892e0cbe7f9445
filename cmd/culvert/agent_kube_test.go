package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/agent/source/kube"
)

const kubeconfig = `{"apiVersion":"v1","kind":"Config","current-context":"c","users":[{"name":"u"}],
"clusters":[{"name":"k","cluster":{"server":%q}}],"contexts":[{"name":"c","context":{"cluster":"k","user":"u"}}]}`

// TestAwait: what the end of the agent's pod waits for, and for how long.
func TestAwait(t *testing.T) {
	const ending = `,"deletionTimestamp":"2026-01-01T00:00:00Z"`
	for _, tc := range []struct {
		name           string
		namespace      string        // more of its metadata
		again          time.Duration // when there is a DaemonSet; negative: never
		silent         bool
		least, most    time.Duration
		uninstall      bool
		farewellToWait time.Duration
	}{
		{name: "restart", most: 500 * time.Millisecond},
		{name: "API server is silent", silent: true, most: 1500 * time.Millisecond},
		{name: "DaemonSet is made anew", again: time.Second, least: time.Second, most: 2500 * time.Millisecond},
		{
			name: "namespace ends", namespace: ending, uninstall: true,
			farewellToWait: 300 * time.Millisecond, least: 300 * time.Millisecond, most: time.Second,
		},
		{name: "DaemonSet is gone", again: -1, uninstall: true, least: 8 * time.Second, most: 9 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var there atomic.Bool
			there.Store(tc.again == 0)
			api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				object := func(more string) string {
					return `{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{` + more + `}}`
				}
				list := `{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"5"},"items":[%s]}`
				w.Header().Set("Content-Type", "application/json")
				switch {
				case tc.silent:
					<-r.Context().Done()
				case strings.HasSuffix(r.URL.Path, "/pods"):
					fmt.Fprintf(w, list, object(`"name":"p","uid":"p","ownerReferences":[{"apiVersion":"apps/v1","kind":"DaemonSet","name":"agent","uid":"u","controller":true}]`))
				case strings.HasSuffix(r.URL.Path, "/namespaces"):
					fmt.Fprintf(w, list, object(`"name":"system","uid":"n"`+tc.namespace))
				case there.Load():
					fmt.Fprint(w, object(`"name":"agent","uid":"v"`))
				default:
					w.WriteHeader(http.StatusNotFound)
					fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
				}
			}))
			defer api.Close()
			file := filepath.Join(t.TempDir(), "kubeconfig")
			if err := os.WriteFile(file, fmt.Appendf(nil, kubeconfig, api.URL), 0o600); err != nil {
				t.Fatal(err)
			}
			config, err := kube.Config(file, "test")
			if err != nil {
				t.Fatal(err)
			}
			s, err := kube.New(kube.Options{
				Config: config, Node: "here", Namespace: "system", DaemonSet: "agent", Pod: "p",
				Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
			})
			if err != nil {
				t.Fatal(err)
			}
			if tc.again > 0 {
				defer time.AfterFunc(tc.again, func() { there.Store(true) }).Stop()
			}
			farewell := make(chan struct{})
			ended := make(chan struct{})
			defer func() { <-ended }()
			work, end := context.WithCancel(t.Context())
			defer end()
			go func() {
				defer close(ended)
				select {
				case <-s.Uninstalling():
					time.Sleep(tc.farewellToWait)
				case <-work.Done():
				}
				close(farewell)
			}()
			term, signal := context.WithCancel(t.Context())
			signal()
			started := time.Now()
			if err := (&kubeAgent{source: s}).await(term, work, farewell); err != nil {
				t.Error(err)
			}
			if took := time.Since(started); took < tc.least || took > tc.most {
				t.Errorf("took %v, want between %v and %v", took, tc.least, tc.most)
			}
			select {
			case <-s.Uninstalling():
				if !tc.uninstall {
					t.Error("taken for an uninstall")
				}
			default:
				if tc.uninstall {
					t.Error("the uninstall is not seen")
				}
			}
		})
	}
}

// TestAnnotated: the annotation comes off pods that an earlier process enrolled too.
func TestAnnotated(t *testing.T) {
	x := source.NewIndex("here")
	for _, p := range []*source.Pod{
		{Namespace: "n", Name: "old", UID: "1", Node: "here", Redirection: source.RedirectionEnabled},
		{Namespace: "n", Name: "both", UID: "2", Node: "here", Redirection: source.RedirectionEnabled},
		{Namespace: "n", Name: "none", UID: "3", Node: "here", Redirection: source.RedirectionAbsent},
		{Namespace: "n", Name: "far", UID: "4", Node: "there", Redirection: source.RedirectionEnabled},
	} {
		x.SetPod(p)
	}
	known := &lastSnapshot{}
	if all := known.annotated(); all != nil {
		t.Errorf("before the first snapshot: %v", all)
	}
	known.last.Store(x.Snapshot())
	enrolled := &enrolledPods{pods: map[string]*source.Pod{
		"2": {Namespace: "n", Name: "both", UID: "2"}, "5": {Namespace: "n", Name: "new", UID: "5"}, "6": {Namespace: "n", Name: "left", UID: "6"},
	}}
	enrolled.forget(&source.Pod{UID: "6"})
	var names []string
	for _, p := range enrolled.and(known.annotated()) {
		names = append(names, p.Name)
	}
	if want := []string{"both", "new", "old"}; !slices.Equal(names, want) {
		t.Errorf("got %v, want %v", names, want)
	}
}
