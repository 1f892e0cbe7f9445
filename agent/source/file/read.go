// Package file reads the cluster from ordinary Kubernetes manifests: once for the command line (Read), or as
// a folder that is watched (Source).
//
// A manifest that cannot be used is named with its file, document, line and field, and costs nothing else:
// every other document counts, and what was good before stays in force.
package file

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/agent/source"
)

// MaxFileSize is the size above which a file is refused.
const MaxFileSize = 64 << 20

// stdinName is how messages call standard input.
const stdinName = "stdin"

// Error is one thing that is wrong in one place. Document counts from 1, and is 0 for a whole file.
type Error struct {
	File           string
	Document, Line int
	Field          string // path in the object; may be empty
	Object         string // "PeerAuthentication ns/name"; may be empty
	Err            error
}

// Error is "file:line: document N: kind ns/name: field: message", without the parts that are not known.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Document > 0 {
		fmt.Fprintf(&b, ":%d: document %d", e.Line, e.Document)
	}
	for _, part := range []string{e.Object, e.Field} {
		if part != "" {
			b.WriteString(": " + part)
		}
	}
	// One line each, whatever a parser or a manifest puts into its message.
	return b.String() + ": " + strings.ReplaceAll(e.Err.Error(), "\n", " ")
}

func (e *Error) Unwrap() error { return e.Err }

// Object says where an object was read from.
type Object struct {
	Kind, Namespace, Name string
	File                  string
	Document, Line        int
}

// Result is what Read found.
type Result struct {
	source.Contents
	Objects []Object
	Skipped map[string]int // documents of kinds that are not used, by kind
	Errors  []*Error
}

// Read reads files, folders (their *.yaml, *.yml and *.json, not their subfolders) and, for "-", stdin. Whatever
// is wrong ends up in Errors; all the rest is read all the same.
func Read(paths []string, stdin io.Reader) Result {
	var all parsed
	for _, in := range inputs(paths) {
		one := in.read(stdin)
		all.objects = append(all.objects, one.objects...)
		all.broken = append(all.broken, one.broken...)
		for kind, n := range one.skipped {
			all.add(kind, n)
		}
	}
	all.refuseRepeated()
	r := Result{Contents: assemble(all.objects), Skipped: all.skipped}
	for _, o := range all.objects {
		r.Objects = append(r.Objects, Object{o.id.kind, o.id.namespace, o.id.name, o.place.file, o.place.document, o.place.line})
	}
	for _, b := range all.broken {
		r.Errors = append(r.Errors, b.errs...)
		r.Problems = append(r.Problems, b.problems()...)
		if b.policy {
			r.UnreadablePolicies = append(r.UnreadablePolicies, b.namespace)
		}
	}
	return r
}

func (b *broken) problems() []source.Problem {
	var out []source.Problem
	for _, e := range b.errs {
		object := e.Object
		if b.anonymous {
			object = e.File
			if e.Document > 0 {
				object = fmt.Sprintf("%s document %d", e.File, e.Document)
			}
		}
		out = append(out, source.Problem{Object: object, Err: e})
	}
	return out
}

// input is one file to read, or an error met while looking for it.
type input struct {
	path string
	err  error
}

// inputs lists the files behind the paths, each once.
func inputs(paths []string) []input {
	var all []input
	seen := map[string]bool{}
	add := func(in input) {
		if key := filepath.Clean(in.path); !seen[key] {
			seen[key] = true
			all = append(all, in)
		}
	}
	for _, path := range paths {
		info, err := os.Stat(path)
		if path == "-" || err != nil || !info.IsDir() {
			add(input{path: path}) // what is wrong with a path shows when it is opened
			continue
		}
		names, err := list(path)
		if err != nil {
			add(input{path: path, err: err})
		}
		for _, name := range names {
			add(input{path: filepath.Join(path, name)})
		}
	}
	return all
}

func (in input) read(stdin io.Reader) *parsed {
	if in.err != nil {
		return unreadable(in.path, in.err)
	}
	if in.path == "-" {
		data, err := readAll(stdin)
		if err != nil {
			return unreadable(stdinName, err)
		}
		return parse(stdinName, data)
	}
	data, err := readFile(in.path)
	if err != nil {
		return unreadable(in.path, err)
	}
	return parse(in.path, data)
}

// unreadable stands for a file whose contents are not known: there may be policies in it.
func unreadable(path string, err error) *parsed {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		err = fmt.Errorf("%s: %w", pathError.Op, pathError.Err)
	}
	return &parsed{broken: []*broken{{policy: true, anonymous: true, whole: true, errs: []*Error{{File: path, Err: err}}}}}
}

// list returns the manifests of a folder in order. Editors' temporary files are no manifests.
func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if isManifest(e.Name()) && isFile(dir, e) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// isFile leaves out folders, and what could block its reader, such as a named pipe. A link that leads
// nowhere counts as a file: that it cannot be read is worth saying.
func isFile(dir string, e fs.DirEntry) bool {
	if e.Type()&fs.ModeSymlink == 0 {
		return e.Type().IsRegular()
	}
	info, err := os.Stat(filepath.Join(dir, e.Name()))
	return err != nil || info.Mode().IsRegular()
}

func isManifest(name string) bool {
	if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "#") || strings.HasSuffix(name, "~") {
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f)
}

func readAll(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxFileSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxFileSize {
		return nil, fmt.Errorf("larger than %d MiB", MaxFileSize>>20)
	}
	return data, nil
}
