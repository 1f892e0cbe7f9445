package file

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"
)

// parse reads the manifests of one file. It is total: whatever data holds, each document ends up among the
// objects, the broken ones or the counted ones.
func parse(file string, data []byte) *parsed {
	chunks := split(data)
	parts := make([]parsed, len(chunks))
	next := make(chan int)
	var workers sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(chunks)) {
		workers.Go(func() {
			for i := range next {
				parts[i].readChunk(file, chunks[i])
			}
		})
	}
	for i := range chunks {
		next <- i
	}
	close(next)
	workers.Wait()

	all := &parsed{}
	for i := range parts {
		all.objects = append(all.objects, parts[i].objects...)
		all.broken = append(all.broken, parts[i].broken...)
		for kind, n := range parts[i].skipped {
			all.add(kind, n)
		}
	}
	all.refuseRepeated()
	return all
}

func (p *parsed) readChunk(file string, c chunk) {
	at := place{file: file, document: c.document, line: c.line}
	// The parser is not ours, and it panics on input that it did not foresee. One manifest must not end
	// the process that enforces all the others.
	defer func() {
		if r := recover(); r != nil {
			p.refuseText(at, c.data, fmt.Errorf("the YAML parser gave up: %v", r))
		}
	}()
	decoder := yaml.NewDecoder(bytes.NewReader(c.data))
	// A chunk holds more than one document only where its lines end in something else than a newline.
	for {
		var n yaml.Node
		err := decoder.Decode(&n)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			line, err := yamlError(err)
			at.line = c.line + max(line, 1) - 1
			p.refuseText(at, c.data, err)
			return
		}
		p.readDocument(&n, at, c)
	}
}

func (p *parsed) readDocument(n *yaml.Node, at place, c chunk) {
	if n.Kind == yaml.DocumentNode && len(n.Content) == 1 {
		n = n.Content[0]
	}
	if bytes.ContainsAny(c.data, "&*") || bytes.Contains(c.data, []byte("<<")) {
		budget := maxUnfolded + bytes.Count(c.data, []byte("\n"))
		unfolded, err := unfold(n, &budget, 0)
		if err != nil {
			p.refuseText(at, c.data, err)
			return
		}
		n = unfolded
	}
	if isNull(n) || n.IsZero() {
		return
	}
	shift(n, c.line-1)
	p.readObject(n, at, "", 0)
}

// shift turns lines of a chunk into lines of the file.
func shift(n *yaml.Node, by int) {
	if by == 0 {
		return
	}
	n.Line += by
	for _, child := range n.Content {
		shift(child, by)
	}
}

// yamlError takes the line out of the parser's message, which counts from the start of the chunk.
func yamlError(err error) (int, error) {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	m := regexp.MustCompile(`^line (\d+): (?s)(.*)$`).FindStringSubmatch(text)
	if m == nil {
		return 1, errors.New(text)
	}
	line, err := strconv.Atoi(m[1])
	if err != nil {
		return 1, errors.New(text)
	}
	return line, errors.New(m[2])
}

// refuseText records a document that has no tree. What it would have been is read off its lines as far
// as there is no doubt; in doubt it may be a policy, of any namespace.
func (p *parsed) refuseText(at place, data []byte, err error) {
	b := &broken{anonymous: true}
	b.id.kind = only(data, `(?m)^kind:[ \t]*["']?([A-Za-z]+)["']?[ \t\r]*(?:#.*)?$`)
	b.policy = b.id.kind == "" || b.id.kind == kindPolicy || strings.HasSuffix(b.id.kind, "List")
	if b.id.kind == kindPolicy {
		b.namespace = only(data, `(?m)^[ \t]+namespace:[ \t]*["']?([a-z0-9-]+)["']?[ \t\r]*(?:#.*)?\n`)
	}
	p.refuse(at, b, fieldError{line: at.line, err: err})
}

// only returns what a pattern finds if it finds it exactly once.
func only(data []byte, pattern string) string {
	found := regexp.MustCompile(pattern).FindAllSubmatch(data, 2)
	if len(found) != 1 {
		return ""
	}
	return string(found[0][1])
}

func (p *parsed) add(kind string, n int) {
	if p.skipped == nil {
		p.skipped = map[string]int{}
	}
	p.skipped[kind] += n
}

// refuseRepeated drops objects that the file has already had: the first stays.
func (p *parsed) refuseRepeated() {
	var kept []*object
	seen := make(map[objectID]*object, len(p.objects))
	for _, o := range p.objects {
		if first := seen[o.id]; first != nil {
			p.broken = append(p.broken, repeated(o, first))
			continue
		}
		seen[o.id] = o
		kept = append(kept, o)
	}
	p.objects = kept
}

// repeated is the error for an object that stands in two places.
func repeated(o, first *object) *broken {
	return &broken{id: o.id, namespace: o.id.namespace, repeated: true, errs: []*Error{{
		File: o.place.file, Document: o.place.document, Line: o.place.line, Object: o.id.String(),
		Err: fmt.Errorf("is already defined at %s, document %d: that one is used", first.place, first.place.document),
	}}}
}
