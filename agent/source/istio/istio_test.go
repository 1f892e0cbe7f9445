package istio

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	kjson "sigs.k8s.io/json"

	"github.com/culvert-mesh/culvert/policy"
)

func parse(t *testing.T, text string) any {
	t.Helper()
	if text == "" {
		return nil
	}
	var v any
	if err := kjson.UnmarshalCaseSensitivePreserveInts([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestPeerAuthentication(t *testing.T) {
	meta := Meta{Namespace: "n", Name: "p", Created: time.Unix(1, 0)}
	for _, tc := range []struct {
		name, spec string
		errs       string // parts of the errors, separated by "|"
		want       policy.PeerAuthentication
	}{
		{name: "no spec"},
		{name: "null everywhere", spec: `{"mtls":null,"selector":null,"portLevelMtls":null}`},
		{name: "strict", spec: `{"mtls":{"mode":"STRICT"}}`, want: policy.PeerAuthentication{Mode: policy.Strict}},
		{
			name: "ports", spec: `{"selector":{"matchLabels":{"app":"web"}},"portLevelMtls":{"8080":{"mode":"DISABLE"},"9090":{}}}`,
			want: policy.PeerAuthentication{
				SelectorPresent: true, Selector: map[string]string{"app": "web"},
				Ports: map[uint16]policy.Mode{8080: policy.Disable, 9090: policy.Unset},
			},
		},
		{name: "unknown mode", spec: `{"mtls":{"mode":"SOMETIMES"}}`, errs: "spec.mtls.mode: unknown value"},
		{name: "mode as a number", spec: `{"mtls":{"mode":3}}`, errs: "spec.mtls.mode: unknown value the number 3"},
		{name: "unknown field", spec: `{"mtls":{"mdoe":"STRICT"}}`, errs: "spec.mtls.mdoe: unknown field"},
		{name: "unknown and null", spec: `{"selectors":null}`, errs: "spec.selectors: unknown field"},
		{name: "two errors", spec: `{"mtls":[],"selecto":{}}`, errs: "spec.mtls: must be a mapping|spec.selecto: unknown field"},
		{name: "name of the protobuf file", spec: `{"port_level_mtls":{}}`, errs: "did you mean portLevelMtls?"},
		{name: "labels of numbers", spec: `{"selector":{"matchLabels":{"app":1}}}`, errs: "must be a string, not the number 1"},
		{name: "port too high", spec: `{"selector":{"matchLabels":{"a":"b"}},"portLevelMtls":{"65536":{}}}`, errs: "not between 1 and 65535"},
		{name: "port 0", spec: `{"selector":{"matchLabels":{"a":"b"}},"portLevelMtls":{"0":{}}}`, errs: "not between 1 and 65535"},
		{name: "port that is a word", spec: `{"selector":{"matchLabels":{"a":"b"}},"portLevelMtls":{"http":{}}}`, errs: "whole number"},
		{name: "ports without a selector", spec: `{"portLevelMtls":{"80":{}}}`, errs: "port modes need a selector"},
		{name: "text", spec: `"STRICT"`, errs: "spec: must be a mapping"},
		{name: "deep", spec: strings.Repeat(`{"selector":`, 200) + "1" + strings.Repeat("}", 200), errs: "unknown field"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, errs := PeerAuthentication(meta, parse(t, tc.spec))
			if !checkErrors(t, errs, tc.errs) {
				return
			}
			tc.want.Namespace, tc.want.Name, tc.want.Created = meta.Namespace, meta.Name, meta.Created
			if text(t, got) != text(t, tc.want) {
				t.Errorf("got %s, want %s", text(t, got), text(t, tc.want))
			}
		})
	}
}

// checkErrors reports whether there are no errors, and none were wanted.
func checkErrors(t *testing.T, errs []FieldError, want string) bool {
	t.Helper()
	joined := ""
	if err := Join(errs); err != nil {
		joined = err.Error()
	}
	if want == "" && joined != "" {
		t.Fatalf("errors: %s", joined)
	}
	for _, part := range strings.Split(want, "|") {
		if !strings.Contains(joined, part) || want != "" && joined == "" {
			t.Errorf("errors %q do not say %q", joined, part)
		}
	}
	return want == ""
}

// TestDescribe: a source can say what was wrong in the words that its objects were written in.
func TestDescribe(t *testing.T) {
	_, errs := PeerAuthentication(Meta{}, map[string]any{"mtls": map[string]any{"mode": true}})
	var wrong *WrongValue
	if len(errs) != 1 || !errors.As(errs[0], &wrong) {
		t.Fatalf("errors: %v", errs)
	}
	const rest = ", must be one of UNSET, DISABLE, PERMISSIVE, STRICT"
	if got := wrong.Error(); got != "unknown value the boolean true"+rest {
		t.Error(got)
	}
	if got := wrong.Describe("on"); got != "unknown value on"+rest {
		t.Error(got)
	}
}

func text(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestDestinationRule(t *testing.T) {
	meta := Meta{Namespace: "n", Name: "r"}
	for _, tc := range []struct {
		name, spec string
		strict     bool
		errs       string
		check      func(*policy.DestinationRule) bool
	}{
		{name: "no spec", errs: "spec.host: missing"},
		{name: "host alone", spec: `{"host":"web"}`, check: func(r *policy.DestinationRule) bool { return r.TLS == nil && r.PortTLS == nil }},
		{
			name: "tls", spec: `{"host":"web","trafficPolicy":{"tls":{"mode":"ISTIO_MUTUAL"},"portLevelSettings":[{"port":{"number":80},"tls":{"mode":"DISABLE"}},{"port":{"number":81}}]}}`,
			check: func(r *policy.DestinationRule) bool {
				nothing, there := r.PortTLS[81]
				return r.TLS.Mode == policy.TLSIstioMutual && r.PortTLS[80].Mode == policy.TLSDisable && there && nothing == nil
			},
		},
		{name: "tls without a mode", spec: `{"host":"web","trafficPolicy":{"tls":{}}}`, errs: "the mode is missing"},
		{
			name: "what is not used is named", spec: `{"host":"web","subsets":[{"name":"v1"}],"trafficPolicy":{"connectionPool":{"tcp":{"connectTimeout":"1s"}}}}`,
			check: func(r *policy.DestinationRule) bool {
				return strings.Join(r.UnusedFields, " ") == "spec.subsets spec.trafficPolicy.connectionPool"
			},
		},
		{
			name: "newer fields", spec: `{"host":"web","future":1,"trafficPolicy":{"future":{"x":[1]},"tls":{"mode":"DISABLE"}}}`,
			check: func(r *policy.DestinationRule) bool {
				return r.TLS.Mode == policy.TLSDisable && strings.Join(r.UnusedFields, " ") == "spec.future spec.trafficPolicy.future"
			},
		},
		{name: "newer fields in a file", strict: true, spec: `{"host":"web","future":1}`, errs: "spec.future: unknown field"},
		{name: "newer fields of TLS", spec: `{"host":"web","trafficPolicy":{"tls":{"mode":"DISABLE","future":1}}}`, errs: "spec.trafficPolicy.tls.future: unknown field"},
		{name: "newer fields of a selector", spec: `{"host":"web","workloadSelector":{"matchExpressions":[]}}`, errs: "unknown field"},
		{name: "newer field that is null", spec: `{"host":"web","future":null}`, check: func(r *policy.DestinationRule) bool { return r.UnusedFields == nil }},
		{name: "port 0", spec: `{"host":"web","trafficPolicy":{"portLevelSettings":[{"port":{"number":0}}]}}`, errs: "portLevelSettings[0]: port.number 0 is not between"},
		{name: "no port", spec: `{"host":"web","trafficPolicy":{"portLevelSettings":[{}]}}`, errs: "is not between"},
		{name: "port twice", spec: `{"host":"web","trafficPolicy":{"portLevelSettings":[{"port":{"number":1}},{"port":{"number":1}}]}}`, errs: "appears twice"},
		{name: "null setting", spec: `{"host":"web","trafficPolicy":{"portLevelSettings":[null]}}`, errs: "must be a mapping, not null"},
		{name: "bad duration", spec: `{"host":"web","trafficPolicy":{"connectionPool":{"tcp":{"connectTimeout":"soon"}}}}`, errs: "must be a duration"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, errs := DestinationRule(meta, parse(t, tc.spec), !tc.strict)
			if checkErrors(t, errs, tc.errs) && !tc.check(got) {
				t.Errorf("got %s", text(t, got))
			}
		})
	}
}

// FuzzSpecs: whatever a spec holds, it is read or refused.
func FuzzSpecs(f *testing.F) {
	f.Add(`{"mtls":{"mode":"STRICT"}}`)
	f.Add(`{"host":"a","trafficPolicy":{"tls":{"mode":"SIMPLE"},"portLevelSettings":[{"port":{"number":1},"tls":null}]}}`)
	f.Fuzz(func(t *testing.T, text string) {
		var v any
		if kjson.UnmarshalCaseSensitivePreserveInts([]byte(text), &v) != nil {
			return
		}
		if p, errs := PeerAuthentication(Meta{"n", "p", time.Time{}}, v); (p == nil) == (len(errs) == 0) {
			t.Error("neither read nor refused")
		}
		if r, errs := DestinationRule(Meta{"n", "r", time.Time{}}, v, true); (r == nil) == (len(errs) == 0) {
			t.Error("neither read nor refused")
		}
	})
}
