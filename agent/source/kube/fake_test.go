package kube

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"k8s.io/client-go/rest"
)

// The paths of what a source reads.
const (
	podsPath     = "/api/v1/pods"
	servicesPath = "/api/v1/services"
	policiesPath = "/apis/security.istio.io/v1/peerauthentications"
)

// fakeAPI is an API server that answers as it is told: empty lists and silent watches at first, without Istio's kinds.
type fakeAPI struct {
	*httptest.Server
	mu     sync.Mutex
	token  string // what requests must carry; "" is anything
	routes map[string]http.HandlerFunc
	lists  map[string]int // LIST requests by path
	closed chan struct{}
}

func newFakeAPI(t *testing.T) *fakeAPI {
	t.Helper()
	f := &fakeAPI{routes: map[string]http.HandlerFunc{}, lists: map[string]int{}, closed: make(chan struct{})}
	for path, kind := range map[string]string{
		podsPath: "v1 Pod", servicesPath: "v1 Service", "/api/v1/namespaces": "v1 Namespace", "/api/v1/nodes": "v1 Node",
		"/apis/discovery.k8s.io/v1/endpointslices":   "discovery.k8s.io/v1 EndpointSlice",
		"/apis/networking.k8s.io/v1/servicecidrs":    "networking.k8s.io/v1 ServiceCIDR",
		"/apis/apps/v1/namespaces/system/daemonsets": "apps/v1 DaemonSet",
	} {
		f.serve(path, list(kind, 1))
	}
	f.serve("/apis", text(`{"kind":"APIGroupList","groups":[{"name":"networking.k8s.io"}]}`))
	f.serve("/apis/networking.k8s.io", text(`{"kind":"APIGroup","versions":[{"version":"v1"}]}`))
	f.serve("/apis/networking.k8s.io/v1", text(`{"kind":"APIResourceList","resources":[{"name":"servicecidrs"}]}`))
	f.Server = httptest.NewServer(http.HandlerFunc(f.answer))
	t.Cleanup(func() {
		close(f.closed)
		f.CloseClientConnections()
		f.Close()
	})
	return f
}

// withPolicies makes the fake serve PeerAuthentications.
func (f *fakeAPI) withPolicies(h http.HandlerFunc) {
	f.serve("/apis/security.istio.io", text(`{"kind":"APIGroup","versions":[{"version":"v1"}]}`))
	f.serve("/apis/security.istio.io/v1", text(`{"kind":"APIResourceList","resources":[{"name":"peerauthentications"}]}`))
	f.serve(policiesPath, h)
}

func (f *fakeAPI) config() *rest.Config { return &rest.Config{Host: f.URL} }

// serve sets the answer to a path; nil is 404.
func (f *fakeAPI) serve(path string, h http.HandlerFunc) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.routes[path] = h
}

func (f *fakeAPI) accept(token string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.token = token
}

func (f *fakeAPI) listed(path string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lists[path]
}

func (f *fakeAPI) answer(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	f.mu.Lock()
	h, token := f.routes[r.URL.Path], f.token
	if !isWatch(r) {
		f.lists[r.URL.Path]++
	}
	f.mu.Unlock()
	switch {
	case token != "" && r.Header.Get("Authorization") != "Bearer "+token:
		fail(http.StatusUnauthorized, "Unauthorized")(w, r)
	case h == nil:
		fail(http.StatusNotFound, "NotFound")(w, r)
	case r.URL.Query().Get("sendInitialEvents") != "":
		fail(http.StatusUnprocessableEntity, "Invalid")(w, r)
	default:
		h(w, r)
	}
}

func isWatch(r *http.Request) bool { return r.URL.Query().Get("watch") == "true" }

func text(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) }
}

func status(code int, reason string) string {
	return fmt.Sprintf(`{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"told to","reason":%q,"code":%d}`, reason, code)
}

func fail(code int, reason string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		fmt.Fprint(w, status(code, reason))
	}
}

func listText(kind string, version int, next string, items ...string) string {
	apiVersion, name, _ := strings.Cut(kind, " ")
	return fmt.Sprintf(`{"kind":"%sList","apiVersion":%q,"metadata":{"resourceVersion":"%d","continue":%q},"items":[%s]}`,
		name, apiVersion, version, next, strings.Join(items, ","))
}

// list answers a LIST with the items, and keeps watches open.
func list(kind string, version int, items ...string) http.HandlerFunc {
	return listThenWatch(listText(kind, version, "", items...), silent)
}

func listThenWatch(body string, watch http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if isWatch(r) {
			watch(w, r)
			return
		}
		fmt.Fprint(w, body)
	}
}

func silent(w http.ResponseWriter, r *http.Request) {
	w.(http.Flusher).Flush()
	<-r.Context().Done()
}

// events answers a watch with those, and ends it.
func events(lines ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for _, l := range lines {
			fmt.Fprintln(w, l)
		}
	}
}

func event(kind, object string) string { return fmt.Sprintf(`{"type":%q,"object":%s}`, kind, object) }

func podText(name, ip string, version int) string {
	return fmt.Sprintf(`{"kind":"Pod","apiVersion":"v1","metadata":{"namespace":"n","name":%q,"uid":%q,"resourceVersion":"%d"},`+
		`"spec":{"nodeName":"there","containers":[{"name":"c"}]},"status":{"phase":"Running","podIPs":[{"ip":%q}]}}`, name, name, version, ip)
}

func policyText(namespace, name, spec string) string {
	return fmt.Sprintf(`{"kind":"PeerAuthentication","apiVersion":"security.istio.io/v1","metadata":{"namespace":%q,"name":%q,"uid":"u"},"spec":%s}`,
		namespace, name, spec)
}

// logged is a log that can be read while it is written.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewJSONHandler(l, nil)) }

// lines are the entries for which ok answers true.
func (l *logged) lines(ok func(map[string]any) bool) (found []map[string]any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.buf.String()) {
		var entry map[string]any
		if json.Unmarshal([]byte(line), &entry) == nil && ok(entry) {
			found = append(found, entry)
		}
	}
	return found
}
