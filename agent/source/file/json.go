package file

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// converter turns YAML into what JSON has: map[string]any, []any, string, bool, int64, float64 and nil. It collects
// what JSON has no form for, and goes on: nothing of a tree with errors is used, but it is looked at for more.
type converter struct {
	// numberKeys is the only mapping whose keys may be something else than strings; "*" stands for any mapping.
	numberKeys string
	errs       []fieldError
}

func (c *converter) value(n *yaml.Node, path string, depth int) any {
	if depth > maxDepth {
		c.errs = append(c.errs, fieldError{n.Line, path, errors.New("nested too deeply")})
		return nil
	}
	switch n.Kind {
	case yaml.MappingNode:
		return c.mapping(n, path, depth)
	case yaml.SequenceNode:
		list := make([]any, len(n.Content))
		for i, child := range n.Content {
			list[i] = c.value(child, path+"["+strconv.Itoa(i)+"]", depth+1)
		}
		return list
	case yaml.ScalarNode:
		v, err := scalar(n)
		if err != nil {
			c.errs = append(c.errs, fieldError{n.Line, path, err})
			return n.Value
		}
		return v
	}
	c.errs = append(c.errs, fieldError{n.Line, path, errors.New("cannot be read as JSON")})
	return nil
}

// mapping refuses keys that appear twice, as text or once they are JSON: what these mean would depend on the reader.
func (c *converter) mapping(n *yaml.Node, path string, depth int) any {
	twice := duplicateKey(n, path)
	m := make(map[string]any, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, name := n.Content[i], keyText(n.Content[i])
		switch _, have := m[name]; {
		case key.Kind != yaml.ScalarNode: // duplicateKey refuses it
		case have && twice == nil:
			twice = &fieldError{key.Line, join(path, key.Value), errors.New("appears twice")}
		case have:
		case !isString(key) && c.numberKeys != "*" && c.numberKeys != path:
			c.errs = append(c.errs, fieldErrorf(key, path+"["+key.Value+"]", "the key must be a string, not %s", describe(key)))
		default:
			m[name] = c.value(n.Content[i+1], join(path, name), depth+1)
		}
	}
	if twice != nil {
		c.errs = append(c.errs, *twice)
	}
	return m
}

func scalar(n *yaml.Node) (any, error) {
	switch t := tag(n); t {
	case "!!null":
		return nil, nil
	case "!!bool":
		return truth(n), nil
	case "!!int", "!!float":
		return number(n, t)
	case "!!str", "!!timestamp":
		return n.Value, nil
	default:
		return nil, fmt.Errorf("tag %s has no meaning in a manifest", t)
	}
}

func truth(n *yaml.Node) bool {
	switch strings.ToLower(n.Value) {
	case "true", "yes", "on":
		return true
	}
	return false
}

// number keeps whole numbers and others apart, as they were written: 8080.0 is no port.
func number(n *yaml.Node, tag string) (any, error) {
	var i int64
	if tag == "!!int" && n.Decode(&i) == nil {
		return i, nil
	}
	var f float64
	if err := n.Decode(&f); err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
		return nil, fmt.Errorf("%s is no number that JSON knows", n.Value)
	}
	return f, nil
}
