package cniconf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// Some files cannot be edited in place: a .conf or .json holds one plugin and has no list, and a symbolic link
// belongs to whoever made it, and may lead to where we see something else than the runtime does, or are
// not told of changes. For these, a shadow is made: a list with the same content and our entry, under a name
// that sorts right before the file's. The file itself is never touched; to uninstall, the shadow is removed.
//
// "-" sorts before ".", and there can be nothing that the runtime prefers to the file, because the file is the
// first; so 10-net-culvert.conflist comes first in the place of 10-net.conf.

const shadowSuffix = "-culvert.conflist"

func shadowName(name string) string {
	return strings.TrimSuffix(name, filepath.Ext(name)) + shadowSuffix
}

// single is a configuration of one plugin.
type single struct{ name, version string }

// parseSingle reads the configuration of one plugin by the rules of libcni.
func parseSingle(text []byte) (*single, error) {
	var s struct {
		Name       string `json:"name"`
		CNIVersion string `json:"cniVersion"`
	}
	if !json.Valid(text) {
		return nil, fmt.Errorf("%w: no valid JSON", errNotAPlugin)
	}
	if _, err := pluginType(bytes.TrimSpace(text)); err != nil {
		return nil, fmt.Errorf("%w: %w", errNotAPlugin, err)
	}
	if err := decode(text, &s); err != nil {
		return nil, fmt.Errorf("%w: %w", errNotAPlugin, err)
	}
	return &single{name: s.Name, version: s.CNIVersion}, nil
}

// shadowOfSingle returns the list that stands for one plugin, in the form that libcni itself would make of it, with
// our entry behind it.
func shadowOfSingle(file string, text, content []byte) ([]byte, error) {
	s, err := parseSingle(text)
	if err != nil {
		return nil, err
	}
	if err := checkVersions([]string{s.version}); err != nil {
		return nil, err
	}
	// Strings are quoted by the encoder; the plugin's own text goes in as it is.
	head, err := json.Marshal(map[string]string{shadowKey: file, "cniVersion": s.version, "name": s.name})
	if err != nil {
		return nil, err
	}
	head = bytes.TrimSuffix(head, []byte("}"))
	return slices.Concat(head, []byte(",\"plugins\":[\n"), bytes.TrimSpace(text), []byte(",\n"), content, []byte("\n]}\n")), nil
}

// shadowOfList returns the list with our entry and the mark of a shadow.
func shadowOfList(file string, text, content []byte) ([]byte, error) {
	text, err := chain(text, content)
	if err != nil {
		return nil, err
	}
	key, err := json.Marshal(map[string]string{shadowKey: file})
	if err != nil {
		return nil, err
	}
	open := bytes.IndexByte(text, '{')
	return slices.Concat(text[:open], bytes.TrimSuffix(key, []byte("}")), []byte(","), text[open+1:]), nil
}
