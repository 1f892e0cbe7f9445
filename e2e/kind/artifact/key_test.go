package artifact

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

func key(t *testing.T, in *Inputs) string {
	t.Helper()
	k, err := in.Key()
	if err != nil {
		t.Fatal(err)
	}
	if len(k) != keyLength {
		t.Errorf("key %q has %d characters, want %d", k, len(k), keyLength)
	}
	return k
}

// TestKeysDiffer has inputs that a careless hash would take for the same.
func TestKeysDiffer(t *testing.T) {
	file := func(name, content string) fstest.MapFS { return fstest.MapFS{name: {Data: []byte(content)}} }
	inputs := map[string]*Inputs{
		"nothing":           NewInputs(),
		"a, b":              NewInputs().Add("a", "b"),
		"b, a":              NewInputs().Add("b", "a"),
		"ab":                NewInputs().Add("ab"),
		"a, empty, b":       NewInputs().Add("a", "", "b"),
		"line break":        NewInputs().Add("a\n1:b"),
		"file":              NewInputs().AddFS(file("a.go", "x"), "*.go"),
		"other content":     NewInputs().AddFS(file("a.go", "y"), "*.go"),
		"other name":        NewInputs().AddFS(file("b.go", "x"), "*.go"),
		"name into content": NewInputs().AddFS(file("a", ".gox"), "*"),
	}
	seen := map[string]string{}
	for name, in := range inputs {
		k := key(t, in)
		if other, ok := seen[k]; ok {
			t.Errorf("%s and %s have the same key", name, other)
		}
		seen[k] = name
	}
}

func TestKeyIsStable(t *testing.T) {
	files := fstest.MapFS{"a.go": {Data: []byte("1")}, "b.go": {Data: []byte("2")}, "c.txt": {Data: []byte("3")}}
	first := key(t, NewInputs().AddFS(files, "*.go", "a*"))
	files["c.txt"] = &fstest.MapFile{Data: []byte("changed, but not asked for")}
	if second := key(t, NewInputs().AddFS(files, "a*", "*.go")); second != first {
		t.Errorf("keys %s and %s, want the same", first, second)
	}
}

func TestKeyOfFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if a, b := key(t, NewInputs().AddFile(path)), key(t, NewInputs()); a == b {
		t.Error("the file does not count")
	}
	_, err := NewInputs().AddFile(path + ".missing").Add("more").Key()
	if err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("error %v, want one that names the missing file", err)
	}
}
