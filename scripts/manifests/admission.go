package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"
)

// api makes plain requests. kubectl reads an object before it patches it, which an agent may not.
type api struct {
	url    string
	client *http.Client
}

func newAPI(url string) api {
	// The server's certificate is one that it made for itself; it listens on the loopback address.
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	return api{url: url, client: &http.Client{Transport: transport, Timeout: 30 * time.Second}}
}

// send makes one request with that token; its error is the API server's message.
func (a api) send(ctx context.Context, token, method, path, contentType, body string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, a.url+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", contentType)
	answer, err := a.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode/100 == 2 {
		return content, nil
	}
	var status struct{ Message string }
	if err := json.Unmarshal(content, &status); err != nil {
		return nil, fmt.Errorf("%d %s", answer.StatusCode, content)
	}
	return nil, errors.New(status.Message)
}

const podTemplate = `apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s, labels: {app: x}, annotations: {kept: "yes"}}
spec:
  nodeName: %s
  serviceAccountName: %s
  containers: [{name: c, image: example.org/image}]
---
`

// checkAdmission acts as an agent and as the CA, with real tokens.
func checkAdmission(ctx context.Context, s *server, r *report) {
	k, web := s.kubectl, newAPI(s.url)
	setup := "apiVersion: v1\nkind: Node\nmetadata: {name: node-a}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: node-b}\n---\n" +
		fmt.Sprintf(podTemplate, "agent-a", namespace, "node-a", "culvert-agent") +
		fmt.Sprintf(podTemplate, "on-a", "default", "node-a", "default") +
		fmt.Sprintf(podTemplate, "on-b", "default", "node-b", "default")
	if _, err := k.run(ctx, setup, "apply", "-f", "-"); err != nil {
		r.check(text(err), "pods on two nodes")
		return
	}
	bound, err := token(ctx, k, "culvert-agent", "--bound-object-kind=Pod", "--bound-object-name=agent-a")
	if err != nil {
		r.check(text(err), "a token as the agent on node-a has it")
		return
	}
	loose, err := token(ctx, k, "culvert-agent")
	if err != nil {
		r.check(text(err), "a token of the agent's account that is bound to no pod")
		return
	}
	patch := func(token, pod, body string) error {
		_, err := web.send(ctx, token, http.MethodPatch, "/api/v1/namespaces/default/pods/"+pod+"/status", "application/merge-patch+json", body)
		return err
	}
	const mark = `{"metadata":{"annotations":{"ambient.istio.io/redirection":"enabled"}}}`
	waitForAdmission(func() error { return patch(bound, "on-b", mark) })
	for _, c := range []struct{ what, token, pod, body, refused string }{
		{"the annotation, on a pod of its node", bound, "on-a", mark, ""},
		{"the annotation again", bound, "on-a", mark, ""},
		{"taking the annotation off", bound, "on-a", `{"metadata":{"annotations":{"ambient.istio.io/redirection":null}}}`, ""},
		{"a pod of another node", bound, "on-b", mark, "own node"},
		{"a token that is bound to no node", loose, "on-a", mark, "own node"},
		{"another annotation", bound, "on-a", `{"metadata":{"annotations":{"other":"x"}}}`, "annotations"},
		{"changing another annotation", bound, "on-a", `{"metadata":{"annotations":{"kept":"no"}}}`, "annotations"},
		{"taking another annotation off", bound, "on-a", `{"metadata":{"annotations":{"kept":null}}}`, "annotations"},
		{"all annotations off", bound, "on-a", `{"metadata":{"annotations":null}}`, "annotations"},
		{"a label", bound, "on-a", `{"metadata":{"labels":{"app":"y"}}}`, "one annotation only"},
		{"a finalizer", bound, "on-a", `{"metadata":{"finalizers":["example.org/x"]}}`, "one annotation only"},
		{"the status itself", bound, "on-a", `{"status":{"podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"}]}}`, "one annotation only"},
		{"a condition", bound, "on-a", `{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`, "one annotation only"},
		{"others are not affected", s.token, "on-b", `{"metadata":{"annotations":{"other":"x"}}}`, ""},
	} {
		r.check(verdict(patch(c.token, c.pod, c.body), c.refused), "agent on node-a: %s: %s", c.what, outcome(c.refused))
	}
	_, err = web.send(ctx, bound, http.MethodPatch, "/api/v1/namespaces/default/pods/on-a", "application/merge-patch+json", mark)
	r.check(verdict(err, "cannot patch"), "agent on node-a: the pod itself, not its status: refused")
	checkCA(ctx, s, web, r)
}

func checkCA(ctx context.Context, s *server, web api, r *report) {
	ca, err := token(ctx, s.kubectl, "culvert-ca")
	if err != nil {
		r.check(text(err), "a token of the CA")
		return
	}
	const secrets, maps, kinds = "/api/v1/namespaces/" + namespace + "/secrets", "/api/v1/namespaces/" + namespace + "/configmaps",
		"/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
	const othersMaps = "/api/v1/namespaces/default/configmaps"
	const foreign = `{"metadata":{"name":"things.example.org"},"spec":{"group":"example.org","scope":"Namespaced",` +
		`"names":{"plural":"things","kind":"Thing"},"versions":[{"name":"v1","served":true,"storage":true,` +
		`"schema":{"openAPIV3Schema":{"type":"object"}}}]}}`
	for _, c := range []struct{ what, path, body, refused string }{
		{"its Secret, of another type", secrets, `{"metadata":{"name":"culvert-ca"},"type":"example.org/x"}`, "Opaque"},
		{"its Secret", secrets, `{"metadata":{"name":"culvert-ca"}}`, ""},
		{"the Secret of its root", secrets, `{"metadata":{"name":"culvert-ca-root"}}`, ""},
		{"another Secret", secrets, `{"metadata":{"name":"other"}}`, "own objects"},
		{"a token of the agent's account", secrets, `{"metadata":{"name":"stolen","annotations":{"kubernetes.io/service-account.name":"culvert-agent"}},` +
			`"type":"kubernetes.io/service-account-token"}`, "own objects"},
		{"a Secret of any name", secrets, `{"metadata":{"generateName":"culvert-ca"}}`, "own objects"},
		{"its bundle", maps, `{"metadata":{"name":"culvert-ca-root-cert"}}`, ""},
		{"its bundle, in another namespace", othersMaps, `{"metadata":{"name":"culvert-ca-root-cert"}}`, ""},
		{"another ConfigMap, in another namespace", othersMaps, `{"metadata":{"name":"other"}}`, "own objects"},
		{"another ConfigMap", maps, `{"metadata":{"name":"other"}}`, "own objects"},
		{"another kind", kinds, foreign, "own objects"},
	} {
		_, err := web.send(ctx, ca, http.MethodPost, c.path, "application/json", c.body)
		r.check(verdict(err, c.refused), "CA makes %s: %s", c.what, outcome(c.refused))
	}
	// The package's own test, as the CA's account.
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "./daemonset/crds")
	cmd.Env = append(os.Environ(), "CULVERT_TEST_API_URL="+s.url, "CULVERT_TEST_API_TOKEN="+ca, "CULVERT_TEST_API_ADMIN="+s.token)
	out, err := cmd.CombinedOutput()
	problem := text(err)
	if err != nil {
		problem += "\n" + string(out)
	}
	r.check(problem, "CA makes the kinds of policies, brings its own up to date, leaves another's alone")
}

func token(ctx context.Context, k kubectl, account string, args ...string) (string, error) {
	out, err := k.run(ctx, "", append([]string{"create", "token", account, "-n", namespace}, args...)...)
	return strings.TrimSpace(out), err
}

// waitForAdmission waits until the API server has taken up the policies that were just made.
func waitForAdmission(forbidden func() error) {
	for deadline := time.Now().Add(30 * time.Second); forbidden() == nil && time.Now().Before(deadline); {
		time.Sleep(200 * time.Millisecond)
	}
}

// verdict is "" if err is what was expected: none, or a refusal that says so.
func verdict(err error, refused string) string {
	if refused == "" {
		return text(err)
	}
	return refusal(err, refused)
}

func outcome(refused string) string {
	if refused == "" {
		return "accepted"
	}
	return "refused"
}
