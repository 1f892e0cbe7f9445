package artifact

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"slices"
)

// keyLength is the length of a key: 64 bits in hexadecimal, short enough to read and far more than collide by chance.
const keyLength = 16

// Inputs collects what an artifact is made from. Order counts; errors are kept until Key is asked for.
type Inputs struct {
	hash hash.Hash
	errs []error
}

// NewInputs returns no inputs.
func NewInputs() *Inputs { return &Inputs{hash: sha256.New()} }

// Add adds a named value.
func (in *Inputs) Add(name string, values ...string) *Inputs {
	in.record(name)
	for _, v := range values {
		in.record(v)
	}
	return in
}

// record writes the length first, so that no two lists of strings look the same.
func (in *Inputs) record(s string) { fmt.Fprintf(in.hash, "%d:%s\n", len(s), s) }

// AddFile adds a file's content.
func (in *Inputs) AddFile(path string) *Inputs {
	f, err := os.Open(path)
	if err != nil {
		in.errs = append(in.errs, err)
		return in
	}
	defer f.Close()
	return in.addReader(f)
}

// AddFS adds the names and contents of the files that match one of the patterns.
func (in *Inputs) AddFS(fsys fs.FS, patterns ...string) *Inputs {
	var names []string
	for _, p := range patterns {
		matches, err := fs.Glob(fsys, p)
		if err != nil {
			in.errs = append(in.errs, fmt.Errorf("pattern %q: %w", p, err))
		}
		names = append(names, matches...)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		content, err := fs.ReadFile(fsys, name)
		if err != nil {
			in.errs = append(in.errs, err)
			continue
		}
		in.record(name)
		in.record(string(content))
	}
	return in
}

func (in *Inputs) addReader(r io.Reader) *Inputs {
	sum := sha256.New()
	if _, err := io.Copy(sum, r); err != nil {
		in.errs = append(in.errs, err)
	}
	in.record(string(sum.Sum(nil)))
	return in
}

// Key returns the key of everything added so far.
func (in *Inputs) Key() (string, error) {
	if err := errors.Join(in.errs...); err != nil {
		return "", fmt.Errorf("artifact: read the inputs: %w", err)
	}
	return hex.EncodeToString(in.hash.Sum(nil))[:keyLength], nil
}
