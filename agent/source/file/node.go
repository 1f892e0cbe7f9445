package file

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Limits on what aliases may unfold to, so that a small file cannot become a large one.
const (
	maxUnfolded = 100_000
	maxDepth    = 200
)

// fieldError is an error at one place of one object.
type fieldError struct {
	line  int
	field string
	err   error
}

func fieldErrorf(n *yaml.Node, field, format string, args ...any) fieldError {
	return fieldError{n.Line, field, fmt.Errorf(format, args...)}
}

// unfold returns the tree with aliases and merge keys replaced by what they stand for.
func unfold(n *yaml.Node, budget *int, depth int) (*yaml.Node, error) {
	*budget--
	if *budget < 0 || depth > maxDepth {
		return nil, fmt.Errorf("line %d: aliases unfold to too much", n.Line)
	}
	if n.Kind == yaml.AliasNode {
		return unfold(n.Alias, budget, depth+1)
	}
	out := *n
	out.Anchor, out.Content = "", make([]*yaml.Node, 0, len(n.Content))
	for _, child := range n.Content {
		c, err := unfold(child, budget, depth+1)
		if err != nil {
			return nil, err
		}
		out.Content = append(out.Content, c)
	}
	if n.Kind == yaml.MappingNode {
		return &out, merge(&out)
	}
	return &out, nil
}

// merge applies the "<<" keys of a mapping. Its own keys win, then the earlier source.
func merge(n *yaml.Node) error {
	var own, sources []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		switch {
		case key.ShortTag() != "!!merge":
			own = append(own, key, value)
		case value.Kind == yaml.SequenceNode:
			sources = append(sources, value.Content...)
		default:
			sources = append(sources, value)
		}
	}
	if len(sources) == 0 {
		return nil
	}
	n.Content = own
	have := make(map[string]bool, len(own))
	for i := 0; i < len(own); i += 2 {
		have[own[i].Value] = true
	}
	for _, s := range sources {
		if s.Kind != yaml.MappingNode {
			return fmt.Errorf("line %d: only a mapping can be merged", s.Line)
		}
		for i := 0; i+1 < len(s.Content); i += 2 {
			if !have[s.Content[i].Value] {
				have[s.Content[i].Value] = true
				n.Content = append(n.Content, s.Content[i], s.Content[i+1])
			}
		}
	}
	return nil
}

// get returns the value of a mapping's key, or nil when it is absent or null.
func get(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key && !isNull(n.Content[i+1]) {
			return n.Content[i+1]
		}
	}
	return nil
}

// lookup follows a field path as far as it leads, and returns the line where that is.
func lookup(n *yaml.Node, path string) int {
	line := n.Line
	path = strings.NewReplacer("[", ".", "]", "").Replace(path)
	for _, name := range strings.Split(path, ".") {
		if i, err := strconv.Atoi(name); err == nil && n.Kind == yaml.SequenceNode && i >= 0 && i < len(n.Content) {
			n = n.Content[i]
			line = n.Line
			continue
		}
		found := false
		for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == name {
				line, n, found = n.Content[i].Line, n.Content[i+1], true
				break
			}
		}
		if !found {
			return line
		}
	}
	return line
}

// tag is the scalar's type as kubectl sees it: YAML 1.1's yes, no, on and off are booleans there, so a
// label `app: on` is the same mistake here and there.
func tag(n *yaml.Node) string {
	t := n.ShortTag()
	if t == "!!str" && n.Style == 0 {
		switch n.Value {
		case "yes", "Yes", "YES", "on", "On", "ON", "no", "No", "NO", "off", "Off", "OFF":
			return "!!bool"
		}
	}
	return t
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

func isString(n *yaml.Node) bool {
	if n.Kind != yaml.ScalarNode {
		return false
	}
	t := tag(n)
	return t == "!!str" || t == "!!timestamp"
}

// describe names what a node is, for "must be a string, not ...".
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch tag(n) {
	case "!!null":
		return "null"
	case "!!bool":
		return "the boolean " + n.Value
	case "!!int", "!!float":
		return "the number " + n.Value
	}
	return strconv.Quote(n.Value)
}

// writeJSON appends the tree as JSON. It refuses a key that appears twice, whose meaning would depend on the reader.
func writeJSON(b *bytes.Buffer, n *yaml.Node, path string, depth int) *fieldError {
	if depth > maxDepth {
		return &fieldError{n.Line, path, errors.New("nested too deeply")}
	}
	switch n.Kind {
	case yaml.MappingNode:
		return writeMapping(b, n, path, depth)
	case yaml.SequenceNode:
		b.WriteByte('[')
		for i, child := range n.Content {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := writeJSON(b, child, path, depth+1); err != nil {
				return err
			}
		}
		b.WriteByte(']')
		return nil
	case yaml.ScalarNode:
		return writeScalar(b, n, path)
	}
	return &fieldError{n.Line, path, errors.New("cannot be read as JSON")}
}

func writeMapping(b *bytes.Buffer, n *yaml.Node, path string, depth int) *fieldError {
	if f := duplicateKey(n, path); f != nil {
		return f
	}
	b.WriteByte('{')
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if i > 0 {
			b.WriteByte(',')
		}
		writeString(b, keyText(key))
		b.WriteByte(':')
		if err := writeJSON(b, n.Content[i+1], join(path, key.Value), depth+1); err != nil {
			return err
		}
	}
	b.WriteByte('}')
	return nil
}

// keyText is a key as JSON has it: always a string, and numbers in decimal.
func keyText(key *yaml.Node) string {
	if tag(key) != "!!int" {
		return key.Value
	}
	var i int64
	if key.Decode(&i) != nil {
		return key.Value
	}
	return strconv.FormatInt(i, 10)
}

func duplicateKey(n *yaml.Node, path string) *fieldError {
	var seen map[string]bool
	if len(n.Content) > 16 {
		seen = make(map[string]bool, len(n.Content)/2)
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if key.Kind != yaml.ScalarNode {
			return &fieldError{key.Line, path, errors.New("a key must be a plain word")}
		}
		twice := seen[key.Value]
		for j := 0; seen == nil && j < i; j += 2 {
			twice = twice || n.Content[j].Value == key.Value
		}
		if twice {
			return &fieldError{key.Line, join(path, key.Value), errors.New("appears twice")}
		}
		if seen != nil {
			seen[key.Value] = true
		}
	}
	return nil
}

func writeScalar(b *bytes.Buffer, n *yaml.Node, path string) *fieldError {
	switch t := tag(n); t {
	case "!!null":
		b.WriteString("null")
	case "!!bool":
		b.WriteString(strconv.FormatBool(truth(n)))
	case "!!int", "!!float":
		return writeNumber(b, n, path)
	case "!!str", "!!timestamp":
		writeString(b, n.Value)
	default:
		return &fieldError{n.Line, path, fmt.Errorf("tag %s has no meaning in a manifest", t)}
	}
	return nil
}

func truth(n *yaml.Node) bool {
	switch strings.ToLower(n.Value) {
	case "true", "yes", "on":
		return true
	}
	return false
}

func writeNumber(b *bytes.Buffer, n *yaml.Node, path string) *fieldError {
	if i, err := strconv.ParseInt(n.Value, 10, 64); err == nil && (n.Value == "0" || n.Value[0] != '0') {
		b.WriteString(strconv.FormatInt(i, 10))
		return nil
	}
	var f float64
	var i int64
	if n.ShortTag() == "!!int" && n.Decode(&i) == nil {
		b.WriteString(strconv.FormatInt(i, 10))
		return nil
	}
	if err := n.Decode(&f); err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
		return &fieldError{n.Line, path, fmt.Errorf("%s is no number that JSON knows", n.Value)}
	}
	text, err := json.Marshal(f)
	if err != nil {
		return &fieldError{n.Line, path, err}
	}
	b.Write(text)
	return nil
}

func writeString(b *bytes.Buffer, s string) {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= 0x7f {
			text, _ := json.Marshal(s) // a string always marshals
			b.Write(text)
			return
		}
	}
	b.WriteByte('"')
	b.WriteString(s)
	b.WriteByte('"')
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
