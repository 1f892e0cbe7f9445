package kube

import (
	"fmt"
	"net/http"
	"testing"
	"time"
)

const (
	setPath       = "/apis/apps/v1/namespaces/system/daemonsets"
	ownPath       = setPath + "/culvert-agent"
	namespacePath = "/api/v1/namespaces/system"
)

func setText(more string) string {
	return fmt.Sprintf(`{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"namespace":"system","name":"culvert-agent",`+
		`"uid":"u","resourceVersion":"5"%s}}`, more)
}

const (
	ending   = `,"deletionTimestamp":"2026-01-01T00:00:00Z"`
	orphaned = ending + `,"finalizers":["orphan"]`
)

func setList(items ...string) string {
	return listText("meta.k8s.io/v1 PartialObjectMetadata", 5, "", items...)
}

// begun reports whether the uninstallation begins within the time.
func begun(s *Source, d time.Duration) bool {
	select {
	case <-s.Uninstalling():
		return true
	case <-time.After(d):
		return false
	}
}

func TestUninstalling(t *testing.T) {
	stays := listThenWatch(setList(setText("")), silent)
	for _, tc := range []struct {
		name  string
		first http.HandlerFunc // for the list and watch of the DaemonSet
		get   http.HandlerFunc // of the DaemonSet
		then  func(f *fakeAPI)
		want  bool
	}{
		{name: "it is there", first: stays},
		{name: "deletion seen in a list", first: listThenWatch(setList(setText(ending)), silent), want: true},
		{name: "deletion seen in a watch", first: listThenWatch(setList(setText("")), events(event("MODIFIED", setText(ending)))), want: true},
		{name: "deleted in a watch", first: listThenWatch(setList(setText("")), events(event("DELETED", setText("")))), want: true},
		{name: "not listed, but there", first: listThenWatch(setList(), silent), get: text(setText(""))},
		{name: "not listed, and 404", first: listThenWatch(setList(), silent), get: fail(404, "NotFound"), want: true},
		{name: "not listed, and 403", first: listThenWatch(setList(), silent), get: fail(403, "Forbidden")},
		{name: "not listed, and 500", first: listThenWatch(setList(), silent), get: fail(500, "InternalError")},
		{name: "401", first: fail(401, "Unauthorized"), get: fail(401, "Unauthorized")},
		{name: "403", first: fail(403, "Forbidden"), get: fail(403, "Forbidden")},
		{name: "404 for the list", first: fail(404, "NotFound"), get: fail(404, "NotFound")},
		{name: "half a list", first: text(setList(setText(""))[:70]), get: fail(404, "NotFound")},
		{name: "a watch that fails", first: listThenWatch(setList(setText("")), events(event("ERROR", status(500, "InternalError"))))},
		{name: "orphaned", first: listThenWatch(setList(setText("")), events(event("MODIFIED", setText(orphaned)), event("DELETED", setText("")))), get: fail(404, "NotFound")},
		{
			name: "the namespace ends", first: stays, want: true, then: func(f *fakeAPI) {
				f.serve("/api/v1/namespaces", list("v1 Namespace", 9,
					`{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"system","uid":"n","deletionTimestamp":"2026-01-01T00:00:00Z"}}`))
				f.CloseClientConnections()
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFakeAPI(t)
			f.serve(setPath, tc.first)
			f.serve(ownPath, tc.get)
			f.serve("/api/v1/namespaces", list("v1 Namespace", 5, `{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"system","uid":"n"}}`))
			f.serve(namespacePath, text(`{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"system","uid":"n"}}`))
			s, v := start(t, Options{Config: f.config(), Namespace: "system", DaemonSet: "culvert-agent"})
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
			} else if begun(s, 500*time.Millisecond) {
				t.Error("an uninstallation is seen where there is none")
			}
		})
	}
}
