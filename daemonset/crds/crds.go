// Package crds holds the kinds that policies are written in, and makes them in a cluster that has none. It speaks to the
// API server without a Kubernetes client: what it needs is three requests.
package crds

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"path"

	"sigs.k8s.io/yaml"
)

// The label by which kinds are known as Culvert's own. Those without it belong to somebody else.
const ownLabel, ownValue = "app.kubernetes.io/part-of", "culvert"

const (
	collection = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
	// maxAnswer bounds what is read of an answer. Istio's definition of DestinationRule has some 200 kB.
	maxAnswer = 4 << 20
)

//go:embed peerauthentications.yaml destinationrules.yaml
var files embed.FS

// API is an API server.
type API struct {
	URL    string
	Client *http.Client
	// Token is asked before each request, because tokens are replaced while the process lives.
	Token func() (string, error)
}

// Install makes the kinds that are absent and brings those that are Culvert's own up to date. Kinds of others
// are left as they are.
func Install(ctx context.Context, api API, log *slog.Logger) error {
	entries, err := files.ReadDir(".")
	if err != nil {
		return fmt.Errorf("kinds of policies: %w", err)
	}
	var errs []error
	for _, e := range entries {
		content, err := files.ReadFile(e.Name())
		if err != nil {
			return fmt.Errorf("kinds of policies: %w", err)
		}
		if err := api.install(ctx, content, log); err != nil {
			errs = append(errs, fmt.Errorf("kind of %s: %w", e.Name(), err))
		}
	}
	return errors.Join(errs...)
}

// definition is what has to be known of a CustomResourceDefinition.
type definition struct {
	Metadata struct {
		Name   string            `json:"name"`
		Labels map[string]string `json:"labels"`
	} `json:"metadata"`
}

func (a API) install(ctx context.Context, manifest []byte, log *slog.Logger) error {
	// To JSON here: the API server's YAML need not know merge keys.
	body, err := yaml.YAMLToJSON(manifest)
	if err != nil {
		return err
	}
	var want definition
	if err := json.Unmarshal(body, &want); err != nil {
		return err
	}
	log = log.With("kind", want.Metadata.Name)
	there := path.Join(collection, want.Metadata.Name)
	answer, err := a.request(ctx, http.MethodGet, there, "", nil)
	if notFound(err) {
		_, err = a.request(ctx, http.MethodPost, collection, "application/json", body)
		if err == nil {
			log.Info("made the kind, which was absent")
			return nil
		}
		if !exists(err) {
			return err
		}
		// Somebody was faster, perhaps another replica.
		answer, err = a.request(ctx, http.MethodGet, there, "", nil)
	}
	if err != nil {
		return err
	}
	var have definition
	if err := json.Unmarshal(answer, &have); err != nil {
		return fmt.Errorf("reading the API server's answer: %w", err)
	}
	if have.Metadata.Labels[ownLabel] != ownValue {
		log.Info("the kind is there and not Culvert's own: left as it is")
		return nil
	}
	// Server-side apply changes nothing where nothing differs.
	query := url.Values{"fieldManager": {"culvert"}, "force": {"true"}}
	if _, err := a.request(ctx, http.MethodPatch, there+"?"+query.Encode(), "application/apply-patch+yaml", body); err != nil {
		return err
	}
	log.Info("the kind is up to date")
	return nil
}

// statusError is an answer that is none of success.
type statusError struct {
	code    int
	message string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("API server answered %d: %s", e.code, e.message)
}

func notFound(err error) bool { return hasCode(err, http.StatusNotFound) }
func exists(err error) bool   { return hasCode(err, http.StatusConflict) }

func hasCode(err error, code int) bool {
	var status *statusError
	return errors.As(err, &status) && status.code == code
}

func (a API) request(ctx context.Context, method, target, contentType string, body []byte) ([]byte, error) {
	token, err := a.Token()
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, method, a.URL+target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Accept", "application/json")
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	answer, err := a.Client.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("reading the API server's answer: %w", err)
	}
	if answer.StatusCode/100 != 2 {
		var status struct{ Message string }
		_ = json.Unmarshal(content, &status) // a proxy's answer has no message
		return nil, &statusError{answer.StatusCode, status.Message}
	}
	return content, nil
}
