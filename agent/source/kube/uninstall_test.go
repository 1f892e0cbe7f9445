package kube

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

const (
	setPath       = "/apis/apps/v1/namespaces/system/daemonsets"
	ownPath       = setPath + "/culvert-agent"
	ownPodsPath   = "/api/v1/namespaces/system/pods"
	namespacePath = "/api/v1/namespaces"
)

func setText(more string) string {
	return fmt.Sprintf(`{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"namespace":"system","name":"culvert-agent",`+
		`"uid":"u","resourceVersion":"5"%s}}`, more)
}

// again is the DaemonSet that was made anew.
func again(more string) string { return strings.Replace(setText(more), `"uid":"u"`, `"uid":"v"`, 1) }

const (
	ending   = `,"deletionTimestamp":"2026-01-01T00:00:00Z"`
	orphaned = ending + `,"finalizers":["orphan"]`
)

func setList(items ...string) string {
	return listText("meta.k8s.io/v1 PartialObjectMetadata", 5, "", items...)
}

// ownPod answers with the agent's pod and its ownerReferences.
func ownPod(owners string) http.HandlerFunc {
	return text(setList(`{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"namespace":"system","name":"pod","uid":"p",` +
		`"ownerReferences":[` + owners + `]}}`))
}

func ownedBy(kind, name, uid string) http.HandlerFunc {
	return ownPod(fmt.Sprintf(`{"apiVersion":"apps/v1","kind":%q,"name":%q,"uid":%q,"controller":true}`, kind, name, uid))
}

func namespaceList(more string) http.HandlerFunc {
	return list("v1 Namespace", 5, `{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"system","uid":"n"`+more+`}}`)
}

// begun reports whether the uninstallation begins within the time.
func begun(s *Source, d time.Duration) bool {
	if s.uninstall.isBegun() {
		return true
	}
	select {
	case <-s.Uninstalling():
		return true
	case <-time.After(d):
		return false
	}
}

// newOwn is an API server with what belongs to an agent.
func newOwn(t *testing.T) *fakeAPI {
	t.Helper()
	f := newFakeAPI(t)
	f.serve(setPath, listThenWatch(setList(setText("")), silent))
	f.serve(ownPath, text(setText("")))
	f.serve(ownPodsPath, ownedBy("DaemonSet", "culvert-agent", "u"))
	f.serve(namespacePath, namespaceList(""))
	return f
}

func ownOptions(f *fakeAPI) Options {
	return Options{Config: f.config(), Namespace: "system", DaemonSet: "culvert-agent", Pod: "pod"}
}

func TestUninstalling(t *testing.T) {
	there := setList(setText(""))
	stays := listThenWatch(there, silent)
	deleted := listThenWatch(there, events(event("DELETED", setText(""))))
	gone, forbidden := fail(404, "NotFound"), fail(403, "Forbidden")
	for _, tc := range []struct {
		name  string
		first http.HandlerFunc // for the list and watch of the DaemonSet
		get   http.HandlerFunc // of the DaemonSet
		pod   http.HandlerFunc // nil: it belongs to the DaemonSet
		noPod bool             // the agent was not told its name
		then  func(f *fakeAPI)
		want  bool
	}{
		{name: "it is there", first: stays, get: text(setText(""))},
		{name: "deletion seen in a list", first: listThenWatch(setList(setText(ending)), silent), get: text(setText(ending)), want: true},
		{name: "deletion seen in a watch", first: listThenWatch(there, events(event("MODIFIED", setText(ending)))), get: gone, want: true},
		{name: "deleted in a watch", first: deleted, get: gone, want: true},
		{name: "deleted, and the permissions too", first: deleted, get: forbidden, want: true},
		{name: "deleted, and the account too", first: deleted, get: fail(401, "Unauthorized"), want: true},
		{name: "deleted, and 500", first: deleted, get: fail(500, "InternalError")},
		{name: "replaced", first: listThenWatch(there, events(event("DELETED", setText("")), event("ADDED", again("")))), get: text(again(""))},
		{name: "replaced, seen in a relist", first: listThenWatch(setList(again("")), silent), get: text(again(""))},
		{name: "the successor was deleted too", first: listThenWatch(setList(again("")), events(event("DELETED", again("")))), get: gone, want: true},
		{name: "not listed, but there", first: listThenWatch(setList(), silent), get: text(setText(""))},
		{name: "not listed, and 404", first: listThenWatch(setList(), silent), get: gone, want: true},
		{name: "not listed, and 403", first: listThenWatch(setList(), silent), get: forbidden},
		{name: "not listed, and 500", first: listThenWatch(setList(), silent), get: fail(500, "InternalError")},
		{name: "not listed, and something else", first: listThenWatch(setList(), silent), get: text("{}")},
		{name: "401", first: fail(401, "Unauthorized"), get: fail(401, "Unauthorized")},
		{name: "403", first: forbidden, get: forbidden},
		{name: "404 for the list", first: gone, get: gone},
		{name: "half a list", first: text(setList(setText(""))[:70]), get: gone},
		{name: "a watch that fails", first: listThenWatch(there, events(event("ERROR", status(500, "InternalError")))), get: gone},
		{
			name: "orphaned", get: gone,
			first: listThenWatch(there, events(event("MODIFIED", setText(orphaned)), event("DELETED", setText("")))),
		},
		{name: "orphaned, seen in a relist", first: listThenWatch(setList(), silent), get: gone, pod: ownPod("")},
		{name: "orphaned, not seen by the watch", first: deleted, get: gone, pod: ownPod("")},
		{name: "no DaemonSet of that name, ever", first: listThenWatch(setList(), silent), get: gone, pod: ownedBy("DaemonSet", "other", "u")},
		{name: "the pod is not a DaemonSet's", first: deleted, get: gone, pod: ownedBy("ReplicaSet", "culvert-agent", "u")},
		{name: "the pod is nobody's", first: deleted, get: gone, pod: ownPod("")},
		{name: "no such pod", first: deleted, get: gone, pod: text(setList())},
		{name: "pods may not be listed", first: deleted, get: gone, pod: forbidden},
		{name: "the pod's name is not known", first: deleted, get: gone, noPod: true},
		{
			name: "deleted, pods may not be listed any more", first: stays, get: text(setText("")), want: true, then: func(f *fakeAPI) {
				f.serve(ownPodsPath, forbidden)
				f.serve(ownPath, gone)
				f.serve(setPath, deleted)
				f.CloseClientConnections()
			},
		},
		{
			name: "all is forbidden at once", first: stays, get: text(setText("")), then: func(f *fakeAPI) {
				f.serve(ownPodsPath, forbidden)
				f.serve(ownPath, forbidden)
				f.serve(setPath, forbidden)
				f.serve(namespacePath, forbidden)
				f.CloseClientConnections()
			},
		},
		{
			name: "the namespace ends", first: stays, get: text(setText("")), want: true, then: func(f *fakeAPI) {
				f.serve(namespacePath, namespaceList(ending))
				f.CloseClientConnections()
			},
		},
		{
			name: "the namespace ends, and nothing else is known", first: forbidden, get: forbidden, noPod: true, want: true, then: func(f *fakeAPI) {
				f.serve(namespacePath, namespaceList(ending))
				f.CloseClientConnections()
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f := newOwn(t)
			f.serve(setPath, tc.first)
			f.serve(ownPath, tc.get)
			f.serve(setPath+"/other", text(strings.ReplaceAll(setText(""), "culvert-agent", "other")))
			if tc.pod != nil {
				f.serve(ownPodsPath, tc.pod)
			}
			o := ownOptions(f)
			if tc.noPod {
				o.Pod = ""
			}
			s, v := start(t, o)
			v.wait(t, "the first snapshot", any1)
			if tc.then != nil {
				if begun(s, 200*time.Millisecond) {
					t.Fatal("it begins too early")
				}
				tc.then(f)
			}
			if tc.want {
				if !begun(s, eventually) {
					t.Error("the uninstallation is not seen")
				}
			} else if begun(s, time.Second) {
				t.Error("an uninstallation is seen where there is none")
			}
		})
	}
}

// TestConfirmed: what the end of the agent's pod means, without anything having been followed.
func TestConfirmed(t *testing.T) {
	for _, tc := range []struct {
		name    string
		prepare func(f *fakeAPI)
		after   func(f *fakeAPI) // a moment later
		want    bool
		within  time.Duration // 0: as long as a missing DaemonSet is waited for
	}{
		{name: "restart", prepare: func(*fakeAPI) {}, within: 200 * time.Millisecond},
		{name: "replaced", prepare: func(f *fakeAPI) { f.serve(ownPath, text(again(""))) }, within: 200 * time.Millisecond},
		{name: "gone", prepare: func(f *fakeAPI) { f.serve(ownPath, nil) }, want: true},
		{name: "ending", prepare: func(f *fakeAPI) { f.serve(ownPath, text(setText(ending))) }, want: true},
		{name: "gone, the pod too", want: false, within: 200 * time.Millisecond, prepare: func(f *fakeAPI) {
			f.serve(ownPath, nil)
			f.serve(ownPodsPath, text(setList())) // nothing tells whose it was
		}},
		{
			name: "gone and made anew", prepare: func(f *fakeAPI) { f.serve(ownPath, nil) },
			after: func(f *fakeAPI) { f.serve(ownPath, text(again(""))) },
		},
		{
			name: "gone, then the namespace's permissions", prepare: func(f *fakeAPI) { f.serve(ownPath, nil) },
			after: func(f *fakeAPI) { f.serve(ownPath, fail(403, "Forbidden")) }, // that it was deleted was not seen
		},
		{name: "set free", within: 200 * time.Millisecond, prepare: func(f *fakeAPI) {
			f.serve(ownPath, nil)
			f.serve(ownPodsPath, ownPod(""))
		}},
		{name: "the namespace ends", want: true, within: 200 * time.Millisecond, prepare: func(f *fakeAPI) {
			f.serve(namespacePath, namespaceList(ending))
		}},
		{name: "forbidden", within: 200 * time.Millisecond, prepare: func(f *fakeAPI) {
			f.serve(ownPath, fail(403, "Forbidden"))
			f.serve(ownPodsPath, fail(403, "Forbidden"))
		}},
		{name: "silence", within: 900 * time.Millisecond, prepare: func(f *fakeAPI) {
			f.serve(ownPath, silent)
			f.serve(ownPodsPath, silent)
			f.serve(namespacePath, silent)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newOwn(t)
			tc.prepare(f)
			o := ownOptions(f)
			o.Node, o.pace = "here", quickPace()
			s, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			if tc.after != nil {
				defer time.AfterFunc(100*time.Millisecond, func() { tc.after(f) }).Stop()
			}
			started := time.Now()
			got := s.Confirmed(t.Context())
			took := time.Since(started)
			if got != tc.want || got != begun(s, 0) {
				t.Errorf("confirmed %v, Uninstalling %v, want %v", got, begun(s, 0), tc.want)
			}
			if tc.within != 0 && took > tc.within || took > o.pace.limit+o.pace.ask {
				t.Errorf("took %v", took)
			}
			if tc.want && tc.within == 0 && took < o.pace.settle {
				t.Errorf("a successor was waited for %v only", took)
			}
		})
	}
}

// TestConfirmedJoins: an end of the pod in the middle of a confirmation waits for it.
func TestConfirmedJoins(t *testing.T) {
	f := newOwn(t)
	f.serve(setPath, listThenWatch(setList(setText("")), events(event("DELETED", setText("")))))
	f.serve(ownPath, nil)
	o := ownOptions(f)
	o.Node, o.pace = "here", quickPace()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); s.WatchUninstall(ctx) }()
	defer func() { cancel(); <-ended }()
	for end := time.Now().Add(eventually); len(s.uninstall.turn) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing is being confirmed")
		}
	}
	if !s.Confirmed(t.Context()) || !begun(s, 0) {
		t.Error("not confirmed")
	}
	if !s.Confirmed(t.Context()) {
		t.Error("forgotten")
	}
}
