package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

//go:embed examples.yaml
var examplesFile []byte

// example is an object and what the API server and `culvert policy lint` are to say about it.
type example struct {
	Name string
	// Refused is a part of the API server's message; "" if the object is valid.
	Refused string
	// Linter is "accepts" or "refuses" where the linter knows more, or less, than the API server.
	Linter string
	Object map[string]any
}

// checkExamples sends examples of policies, valid and not, to the API server, and asks the linter as well.
func checkExamples(ctx context.Context, s *server, r *report) {
	var examples []example
	if err := yaml.Unmarshal(examplesFile, &examples); err != nil {
		r.check(text(err), "examples.yaml")
		return
	}
	dir, err := os.MkdirTemp("", "culvert-lint-")
	if err != nil {
		r.check(text(err), "folder for the linter")
		return
	}
	defer os.RemoveAll(dir)
	linter := filepath.Join(dir, "culvert")
	if _, err := output(ctx, "", "go", "build", "-o", linter, "./cmd/culvert"); err != nil {
		r.check(text(err), "building the linter")
		linter = ""
	}
	web := newAPI(s.url)
	// Kinds are served a moment after they were made.
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if _, err := s.kubectl.run(ctx, "", "get", "peerauthentications.v1.security.istio.io,destinationrules.v1alpha3.networking.istio.io"); err == nil {
			break
		}
	}
	for _, e := range examples {
		body, path := e.request()
		_, err := web.send(ctx, s.token, http.MethodPost, path+"?dryRun=All&fieldValidation=Strict", "application/json", body)
		r.check(verdict(err, e.Refused), "%s %s: %s", e.Object["kind"], e.Name, outcome(e.Refused))
		if linter != "" {
			r.check(e.lint(ctx, linter, dir, body), "%s %s: the linter", e.Object["kind"], e.Name)
		}
	}
}

// request completes the object and says where it is to be sent.
func (e example) request() (body, path string) {
	version, _ := e.Object["apiVersion"].(string)
	kind, _ := e.Object["kind"].(string)
	e.Object["metadata"] = map[string]any{"name": "example", "namespace": "default"}
	content, err := json.Marshal(e.Object)
	if err != nil {
		content = []byte(err.Error()) // which the API server will not like
	}
	return string(content), fmt.Sprintf("/apis/%s/namespaces/default/%ss", version, strings.ToLower(kind))
}

func (e example) lint(ctx context.Context, linter, dir, body string) string {
	file := filepath.Join(dir, "object.json")
	if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
		return text(err)
	}
	out, err := exec.CommandContext(ctx, linter, "policy", "lint", "-f", file).CombinedOutput()
	refuses := e.Refused != ""
	if e.Linter != "" {
		refuses = e.Linter == "refuses"
	}
	if refuses == (err != nil) {
		return ""
	}
	return fmt.Sprintf("refuses: %v, want %v: %s", err != nil, refuses, out)
}
