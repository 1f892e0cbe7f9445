package file

import (
	"errors"
	"fmt"
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
	at, _ := find(n, path)
	return at.Line
}

// find follows a field path such as "spec.ports[0].port" as far as it leads. It returns where that is, the key or else
// the item of a list, and the value there if the path ends there.
func find(n *yaml.Node, path string) (at, value *yaml.Node) {
	at, value, _ = descend(n, n, path)
	return at, value
}

// descend also returns what is left of the path. A key may hold dots and brackets itself, as labels do: among the
// keys that match, the one that leads furthest counts.
func descend(at, n *yaml.Node, path string) (*yaml.Node, *yaml.Node, string) {
	if path == "" {
		return at, n, ""
	}
	bestAt, best, bestLeft := at, (*yaml.Node)(nil), path
	try := func(at, n *yaml.Node, name string) {
		rest, ok := cutName(path, name)
		if !ok {
			return
		}
		if nextAt, next, left := descend(at, n, rest); len(left) < len(bestLeft) {
			bestAt, best, bestLeft = nextAt, next, left
		}
	}
	switch n.Kind {
	case yaml.SequenceNode:
		index, _, _ := strings.Cut(strings.TrimPrefix(path, "["), "]")
		if i, err := strconv.Atoi(index); err == nil && i >= 0 && i < len(n.Content) {
			try(n.Content[i], n.Content[i], index)
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			try(n.Content[i], n.Content[i+1], keyText(n.Content[i]))
		}
	}
	return bestAt, best, bestLeft
}

// cutName takes a name off the front of a path: "name", ".name" or "[name]".
func cutName(path, name string) (rest string, ok bool) {
	if rest, ok = strings.CutPrefix(path, "["+name+"]"); !ok {
		rest, ok = strings.CutPrefix(strings.TrimPrefix(path, "."), name)
	}
	return rest, ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
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

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
