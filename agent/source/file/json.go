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
// errors and goes on: nothing of a tree with errors is used, but it is looked at for more.
type converter struct {
	// ports is the path of the mapping whose keys are numbers.
	ports string
	// anyKeys accepts keys that are no strings everywhere, as JSON makes strings of them.
	anyKeys bool
	errs    []fieldError
	// odd is what JSON has no form for: such scalars, and keys that are no strings. Where a field is not known, or its
	// type is wrong, there is more to say than that.
	odd []fieldError
}

// formless stands for a scalar that JSON has no form for. No field has this type.
type formless struct{}

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
			c.odd = append(c.odd, fieldError{n.Line, path, err})
			return formless{}
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
		case path == c.ports && path != "":
			m[name] = c.value(n.Content[i+1], path+"["+name+"]", depth+1)
		default:
			if !c.anyKeys && !isString(key) {
				c.odd = append(c.odd, fieldErrorf(key, path+"["+name+"]", "the key must be a string, not %s", describe(key)))
			}
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
	if tag == "!!int" {
		// Almost all are written like this. A leading 0 or sign takes the parser to tell.
		if i, err := strconv.ParseInt(n.Value, 10, 64); err == nil && n.Value[0] >= '1' {
			return i, nil
		}
		var i int64
		if n.Decode(&i) == nil {
			return i, nil
		}
	}
	var f float64
	if err := n.Decode(&f); err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
		return nil, fmt.Errorf("%s is no number that JSON knows", n.Value)
	}
	return f, nil
}
