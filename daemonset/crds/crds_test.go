package crds

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"testing"
)

// realAPI is the API server that scripts/manifests starts. Tests with it run in order and on a cluster
// that has neither kind.
func realAPI(t *testing.T) API {
	url, token := os.Getenv("CULVERT_TEST_API_URL"), os.Getenv("CULVERT_TEST_API_TOKEN")
	if url == "" {
		t.Skip("no API server: go run ./scripts/manifests starts one and runs this test")
	}
	return API{
		URL: url,
		// The server's certificate is its own, and it listens on the loopback address.
		Client: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}},
		Token:  func() (string, error) { return token, nil },
	}
}

func TestInstall(t *testing.T) {
	api, ctx := realAPI(t), t.Context()
	install := func() {
		t.Helper()
		if err := Install(ctx, api, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
	}
	const name = "peerauthentications.security.istio.io"

	install()
	made := get(ctx, t, api, name)
	if label(made) != ownValue || len(made.Spec.Versions) != 2 {
		t.Fatalf("made %+v, want our label and two versions", made)
	}

	install()
	if again := get(ctx, t, api, name); again.Metadata.UID != made.Metadata.UID || again.Metadata.Generation != made.Metadata.Generation {
		t.Errorf("installing again changed the kind: %+v, before %+v", again.Metadata, made.Metadata)
	}

	// An older version of ours had no short name, say.
	patch(ctx, t, api, name, `{"spec":{"names":{"shortNames":[]}}}`)
	install()
	if got := get(ctx, t, api, name); len(got.Spec.Names.ShortNames) != 1 {
		t.Errorf("short names = %q, want the kind brought up to date", got.Spec.Names.ShortNames)
	}

	// Another's kind stays as it is, whatever it looks like.
	patch(ctx, t, api, name, `{"metadata":{"labels":{"app.kubernetes.io/part-of":null}},"spec":{"names":{"shortNames":["theirs"]}}}`)
	theirs := get(ctx, t, api, name)
	install()
	if got := get(ctx, t, api, name); got.Metadata.Generation != theirs.Metadata.Generation || label(got) != "" {
		t.Errorf("another's kind was touched: %+v, before %+v", got.Metadata, theirs.Metadata)
	}
	patch(ctx, t, api, name, `{"metadata":{"labels":{"app.kubernetes.io/part-of":"culvert"}}}`)
	install()
}

func TestInstallForbidden(t *testing.T) {
	api := realAPI(t)
	api.Token = func() (string, error) { return "nobody", nil }
	err := Install(t.Context(), api, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "401") || !strings.Contains(err.Error(), "destinationrules") {
		t.Errorf("error = %v, want one that names the kinds and the answer", err)
	}
}

// kind is a CustomResourceDefinition as far as the test looks at it.
type kind struct {
	Metadata struct {
		UID        string
		Generation int
		Labels     map[string]string
	}
	Spec struct {
		Names    struct{ ShortNames []string }
		Versions []struct{ Name string }
	}
}

func label(k kind) string { return k.Metadata.Labels[ownLabel] }

func get(ctx context.Context, t *testing.T, api API, name string) (k kind) {
	t.Helper()
	answer, err := api.request(ctx, http.MethodGet, collection+"/"+name, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(answer, &k); err != nil {
		t.Fatal(err)
	}
	return k
}

// patch is what somebody with more permissions than ours does: the token may be another's.
func patch(ctx context.Context, t *testing.T, api API, name, body string) {
	t.Helper()
	admin := api
	admin.Token = func() (string, error) { return os.Getenv("CULVERT_TEST_API_ADMIN"), nil }
	if _, err := admin.request(ctx, http.MethodPatch, collection+"/"+name, "application/merge-patch+json", []byte(body)); err != nil {
		t.Fatal(err)
	}
}
