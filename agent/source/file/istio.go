package file

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/culvert-mesh/culvert/agent/source/istio"
	"github.com/culvert-mesh/culvert/policy"
)

// maxErrors bounds how many errors of one spec are named: each is looked for in the whole of it.
const maxErrors = 50

func readPolicy(o *object, h header, n *yaml.Node) []fieldError {
	var errs []fieldError
	o.policy, errs = readIstio(h, n, istio.PeerAuthentication)
	return errs
}

// readRule is strict: a field of a file that the API does not have is more likely misspelt than new.
func readRule(o *object, h header, n *yaml.Node) []fieldError {
	var errs []fieldError
	o.rule, errs = readIstio(h, n, func(m istio.Meta, spec any) (*policy.DestinationRule, []istio.FieldError) {
		return istio.DestinationRule(m, spec, false)
	})
	return errs
}

// readIstio checks what stands around the spec, and has the spec read.
func readIstio[T any](h header, n *yaml.Node, read func(istio.Meta, any) (*T, []istio.FieldError)) (*T, []fieldError) {
	c := converter{ports: "spec.portLevelMtls"}
	var spec any
	if written := get(n, "spec"); written != nil {
		spec = c.value(written, "spec", 0)
	}
	good, refused := read(istio.Meta{Namespace: h.id.namespace, Name: h.id.name, Created: h.created}, spec)
	errs := append(checkEnvelope(n), c.errs...)
	errs = append(errs, placed(n, refused)...)
	if errs = append(errs, uncovered(c.odd, refused)...); len(errs) > 0 {
		slices.SortStableFunc(errs, func(a, b fieldError) int { return cmp.Compare(a.line, b.line) })
		return nil, errs
	}
	return good, nil
}

// checkEnvelope looks at the fields beside spec.
func checkEnvelope(n *yaml.Node) []fieldError {
	var errs []fieldError
	for i := 0; i+1 < len(n.Content); i += 2 {
		switch key := n.Content[i]; key.Value {
		case "apiVersion", "kind", "metadata", "spec", "status":
		default:
			errs = append(errs, fieldErrorf(key, key.Value, "unknown field: does it belong under spec?"))
		}
	}
	if key := unknownMetadata(get(n, "metadata")); key != nil {
		errs = append(errs, fieldErrorf(key, "metadata."+key.Value, "unknown field"))
	}
	return errs
}

// unknownMetadata returns a key that metadata does not have. A misspelt "namespace" would otherwise move
// a policy to another namespace without a word.
func unknownMetadata(meta *yaml.Node) *yaml.Node {
	for i := 0; meta != nil && i+1 < len(meta.Content); i += 2 {
		switch meta.Content[i].Value {
		case "name", "generateName", "namespace", "selfLink", "uid", "resourceVersion", "generation", "labels",
			"annotations", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "ownerReferences",
			"finalizers", "managedFields", "clusterName":
		default:
			return meta.Content[i]
		}
	}
	return nil
}

// placed gives the errors of a spec their lines.
func placed(n *yaml.Node, refused []istio.FieldError) []fieldError {
	var errs []fieldError
	for i, e := range refused {
		if i == maxErrors {
			errs = append(errs, fieldError{lookup(n, "spec"), "spec", fmt.Errorf("%d more errors", len(refused)-maxErrors)})
			break
		}
		at, value := find(n, e.Field)
		line, err := at.Line, e.Err
		var wrong *istio.WrongValue
		if errors.As(err, &wrong) && value != nil {
			line, err = value.Line, errors.New(wrong.Describe(describe(value)))
		}
		errs = append(errs, fieldError{line, e.Field, err})
	}
	return errs
}

// uncovered leaves out what lies at, or in, a field that was refused anyway: what the keys of an unknown field should
// have been cannot be told.
func uncovered(odd []fieldError, refused []istio.FieldError) []fieldError {
	plain := strings.NewReplacer("[", ".", "]", "").Replace
	fields := make(map[string]bool, len(refused))
	for _, e := range refused {
		fields[plain(e.Field)] = true
	}
	var errs []fieldError
next:
	for _, e := range odd {
		field := plain(e.field)
		for i := range len(field) + 1 {
			if (i == len(field) || field[i] == '.') && fields[field[:i]] {
				continue next
			}
		}
		errs = append(errs, e)
	}
	return errs
}
