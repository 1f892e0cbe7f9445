package main

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// object is a Kubernetes object as it was written.
type object map[string]any

func (o object) text(path ...string) string {
	var v any = map[string]any(o)
	for _, key := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return ""
		}
		v = m[key]
	}
	s, _ := v.(string)
	return s
}

// name identifies the object among others.
func (o object) name() string {
	return strings.Join([]string{o.text("apiVersion"), o.text("kind"), o.text("metadata", "namespace"), o.text("metadata", "name")}, " ")
}

// yaml writes the object anew, with sorted keys and without comments: equal objects give equal text.
func (o object) yaml() string {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(map[string]any(o)); err != nil {
		return err.Error()
	}
	return b.String()
}

// parse reads YAML documents.
func parse(text string) ([]object, error) {
	var all []object
	for dec := yaml.NewDecoder(strings.NewReader(text)); ; {
		var o map[string]any
		err := dec.Decode(&o)
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("manifest: %w", err)
		}
		if len(o) > 0 {
			sortVariables(o)
			all = append(all, object(o))
		}
	}
}

// sortVariables sorts lists of environment variables, whose order means nothing here: kustomize puts those that a patch
// sets before the others.
func sortVariables(v any) {
	switch v := v.(type) {
	case map[string]any:
		for key, child := range v {
			if list, ok := child.([]any); ok && key == "env" {
				slices.SortFunc(list, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
			}
			sortVariables(child)
		}
	case []any:
		for _, child := range v {
			sortVariables(child)
		}
	}
}

// differences tells how two sets of objects differ, each on a line of its own.
func differences(nameA string, a []object, nameB string, b []object) []string {
	var lines []string
	inB := map[string]object{}
	for _, o := range b {
		inB[o.name()] = o
	}
	for _, o := range a {
		other, ok := inB[o.name()]
		delete(inB, o.name())
		if !ok {
			lines = append(lines, fmt.Sprintf("%s: only in %s", o.name(), nameA))
			continue
		}
		if line := firstDifference(o.yaml(), other.yaml()); line != "" {
			lines = append(lines, fmt.Sprintf("%s: %s | %s: %s", o.name(), nameA, nameB, line))
		}
	}
	for name := range inB {
		lines = append(lines, fmt.Sprintf("%s: only in %s", name, nameB))
	}
	slices.Sort(lines)
	return lines
}

// firstDifference is the first line that differs, or "".
func firstDifference(a, b string) string {
	linesA, linesB := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range max(len(linesA), len(linesB)) {
		at := func(lines []string) string {
			if i < len(lines) {
				return strings.TrimSpace(lines[i])
			}
			return "(end)"
		}
		if x, y := at(linesA), at(linesB); x != y {
			return fmt.Sprintf("%q | %q", x, y)
		}
	}
	return ""
}
