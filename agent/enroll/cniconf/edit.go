package cniconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
)

// Editing works on the text: what is not ours keeps its order, spacing, numbers and unknown fields. An entry is
// put behind the last plugin together with the comma and the white space before it, and just that is cut out
// again, so that unchain(chain(text)) is text, byte for byte, without a copy of it having been kept.

// conflist is a list of plugins, and where things are in its text.
type conflist struct {
	text       []byte
	versions   []string // all of cniVersion and cniVersions
	plugins    []entry
	arrayStart int    // behind the [ of plugins
	shadows    string // the file that this one was generated from, if it was
}

// entry is one plugin of a list: its type, and the extent of its text.
type entry struct {
	kind       string
	start, end int
}

var (
	errNotAList   = errors.New("is no list of CNI plugins")
	errNotAPlugin = errors.New("is no configuration of a CNI plugin")
)

// shadowKey marks a file that was generated. Runtimes ignore keys that they do not know.
const shadowKey = "culvertShadows"

// parseList reads a list by the rules of libcni, which the runtimes use.
func parseList(text []byte) (*conflist, error) {
	if !json.Valid(text) {
		return nil, fmt.Errorf("%w: no valid JSON", errNotAList)
	}
	l := &conflist{text: text}
	named := false
	err := eachField(text, func(key string, value []byte, start int) error {
		switch key {
		case "name":
			named = true
			return decode(value, new(string))
		case "cniVersion":
			var v string
			err := decode(value, &v)
			l.versions = append(l.versions, v)
			return err
		case "cniVersions":
			var v []string
			err := decode(value, &v)
			l.versions = append(l.versions, v...)
			return err
		case shadowKey:
			return decode(value, &l.shadows)
		case "plugins":
			return l.parsePlugins(value, start) // of several, the last counts, as everywhere in JSON
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errNotAList, err)
	case !named:
		return nil, fmt.Errorf("%w: no name", errNotAList)
	case l.arrayStart == 0:
		return nil, fmt.Errorf("%w: no plugins", errNotAList)
	}
	return l, nil
}

// eachField calls f with each field of an object, and where its value starts in the text.
func eachField(text []byte, f func(key string, value []byte, start int) error) error {
	d := json.NewDecoder(bytes.NewReader(text))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return errors.New("no object")
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return err
		}
		name, _ := key.(string)
		if err := f(name, value, int(d.InputOffset())-len(value)); err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	return nil
}

func decode(value []byte, into any) error {
	if err := json.Unmarshal(value, into); err != nil {
		return err
	}
	return nil
}

func (l *conflist) parsePlugins(array []byte, offset int) error {
	l.plugins, l.arrayStart = nil, offset+1
	d := json.NewDecoder(bytes.NewReader(array))
	if open, err := d.Token(); err != nil || open != json.Delim('[') {
		return errors.New("no array")
	}
	for d.More() {
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return err
		}
		kind, err := pluginType(value)
		if err != nil {
			return fmt.Errorf("entry %d: %w", len(l.plugins), err)
		}
		end := offset + int(d.InputOffset())
		l.plugins = append(l.plugins, entry{kind: kind, start: end - len(value), end: end})
	}
	return nil
}

// pluginType returns the type of a plugin's configuration.
func pluginType(value []byte) (string, error) {
	if len(value) == 0 || value[0] != '{' {
		return "", errors.New("no object")
	}
	var p struct {
		Type string `json:"type"`
	}
	if err := decode(value, &p); err != nil {
		return "", err
	}
	if p.Type == "" {
		return "", errors.New("no type")
	}
	return p.Type, nil
}

// ours returns the indices of our entries.
func (l *conflist) ours() []int {
	var all []int
	for i, p := range l.plugins {
		if p.kind == PluginName {
			all = append(all, i)
		}
	}
	return all
}

// chained reports whether our entry stands where it does its work: once, with the given content, and behind
// the plugin that makes the network. It need not be the last: with another program that wants to be last too,
// either would rewrite the other's file for ever.
func (l *conflist) chained(content []byte) bool {
	ours := l.ours()
	return len(ours) == 1 && ours[0] > 0 && sameJSON(l.text[l.plugins[ours[0]].start:l.plugins[ours[0]].end], content)
}

func sameJSON(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// chain returns the text with our entry at the end of the list; the text itself if it is chained already.
func chain(text, content []byte) ([]byte, error) {
	l, err := parseList(text)
	if err != nil {
		return nil, err
	}
	if l.chained(content) {
		return text, nil
	}
	if err := checkVersions(l.versions); err != nil {
		return nil, err
	}
	if text, err = unchain(text); err != nil {
		return nil, err
	}
	if l, err = parseList(text); err != nil {
		return nil, err
	}
	if len(l.plugins) == 0 {
		return nil, fmt.Errorf("%w: no plugin to come after", errNotAList)
	}
	last := l.plugins[len(l.plugins)-1]
	return slices.Concat(text[:last.end], []byte(","), l.spaceBefore(len(l.plugins)-1), content, text[last.end:]), nil
}

// spaceBefore returns the white space before a plugin.
func (l *conflist) spaceBefore(i int) []byte {
	from := l.arrayStart
	if i > 0 {
		from = l.plugins[i-1].end
	}
	between := l.text[from:l.plugins[i].start]
	return between[bytes.IndexByte(between, ',')+1:]
}

// unchain returns the text without our entries.
func unchain(text []byte) ([]byte, error) {
	l, err := parseList(text)
	if err != nil {
		return nil, err
	}
	for ours := l.ours(); len(ours) > 0; ours = l.ours() {
		i := ours[len(ours)-1]
		from, to := l.plugins[i].start, l.plugins[i].end
		switch {
		case i > 0:
			from = l.plugins[i-1].end
		case len(l.plugins) > 1:
			to = l.plugins[1].start
		}
		text = slices.Concat(text[:from], text[to:])
		if l, err = parseList(text); err != nil {
			return nil, err
		}
	}
	return text, nil
}
