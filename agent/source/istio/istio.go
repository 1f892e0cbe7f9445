// Package istio turns the spec of a PeerAuthentication or DestinationRule, as JSON has it, into what package policy
// decides with. Every source goes through it, so that an object means the same in a file and in a cluster.
//
// Each object is judged alone, whatever it was admitted by: an older CRD, or one that keeps fields it does not know.
package istio

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/policy"
)

// Meta is what is used of an object's metadata.
type Meta struct {
	Namespace, Name string
	Created         time.Time
}

// FieldError is an error at one place of an object. Field is a path such as "spec.mtls.mode".
type FieldError struct {
	Field string
	Err   error
}

// Error is the place and what is wrong there.
func (e FieldError) Error() string {
	if e.Field == "" {
		return e.Err.Error()
	}
	return e.Field + ": " + e.Err.Error()
}

// Unwrap returns what is wrong.
func (e FieldError) Unwrap() error { return e.Err }

// Join makes one error of several, or nil of none. Of very many it tells the first ones and the number.
func Join(errs []FieldError) error {
	const most = 5
	if len(errs) == 0 {
		return nil
	}
	texts := make([]string, 0, most+1)
	for i, e := range errs {
		if i == most {
			texts = append(texts, fmt.Sprintf("and %d more", len(errs)-most))
			break
		}
		texts = append(texts, e.Error())
	}
	return errors.New(strings.Join(texts, "; "))
}

func fieldErrorf(field, format string, args ...any) FieldError {
	return FieldError{field, fmt.Errorf(format, args...)}
}

// readSpec checks a spec against the API's own descriptor and decodes it into m. A spec is a map[string]any of
// JSON values, with int64 or float64 for numbers; nil is an absent one.
func readSpec(spec any, m proto.Message, tolerant bool) (unknown []string, errs []FieldError) {
	if spec == nil {
		return nil, nil
	}
	c := checker{tolerant: tolerant}
	kept := c.message(spec, m.ProtoReflect().Descriptor(), "spec", 0)
	if len(c.errs) > 0 {
		return nil, c.errs
	}
	text, err := json.Marshal(kept)
	if err == nil {
		err = protojson.Unmarshal(text, m)
	}
	if err != nil {
		return nil, []FieldError{{"spec", err}}
	}
	return c.unknown, nil
}

// refused turns the findings that the API would refuse an object for into errors.
func refused(findings []policy.Finding) []FieldError {
	var errs []FieldError
	for _, f := range findings {
		if f.Severity != policy.Error {
			continue
		}
		message := f.Message
		if f.Hint != "" {
			message += " (" + f.Hint + ")"
		}
		errs = append(errs, FieldError{f.Field, errors.New(message)})
	}
	return errs
}

// at follows keys through mappings; nil when one of them is absent or null.
func at(v any, keys ...string) any {
	for _, k := range keys {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[k]
	}
	return v
}
