package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"strings"
	"time"
)

const (
	// maxPart bounds a file of a report, and maxPartsOfNode how many a node may send.
	maxPart        = 64 << 20
	maxPartsOfNode = 32
)

// archive is a tar.gz with one folder. After an error it only remembers that one.
type archive struct {
	zip    *gzip.Writer
	tar    *tar.Writer
	folder string
	now    time.Time
	parts  int // answers in it
	err    error
}

func newArchive(w io.Writer, folder string) *archive {
	zip := gzip.NewWriter(w)
	return &archive{zip: zip, tar: tar.NewWriter(zip), folder: folder, now: time.Now()}
}

// add writes one file, without what looks like a secret: there is none, unless an error's text carried one along.
func (a *archive) add(name string, text []byte) {
	if a.err != nil {
		return
	}
	if len(text) > maxPart {
		text = fmt.Appendf(nil, "left out: %d bytes are too many\n", len(text))
	}
	text = withoutSecrets(text)
	a.err = a.tar.WriteHeader(&tar.Header{Name: path.Join(a.folder, name), Mode: 0o600, Size: int64(len(text)), ModTime: a.now})
	if a.err == nil {
		_, a.err = a.tar.Write(text)
	}
}

// addArchive takes over what another node wrote, below a folder of its name. What is wrong with it is returned; what
// came before that stays.
func (a *archive) addArchive(node string, text []byte) error {
	if len(text) == 0 {
		return nil
	}
	zip, err := gzip.NewReader(bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	r := tar.NewReader(zip)
	for range maxPartsOfNode {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("answer: %w", err)
		}
		part, err := io.ReadAll(io.LimitReader(r, maxPart+1))
		if err != nil {
			return fmt.Errorf("answer: %w", err)
		}
		a.parts++
		a.add(path.Join(fileName(node), fileName(path.Base(h.Name))), part)
	}
	return fmt.Errorf("answer: has more than %d files", maxPartsOfNode)
}

// close writes what was left out, and the end.
func (a *archive) close(notes []string) error {
	if len(notes) > 0 {
		a.add("errors.txt", []byte(strings.Join(notes, "\n")+"\n"))
	}
	if a.err != nil {
		return a.err
	}
	return errors.Join(a.tar.Close(), a.zip.Close())
}

// fileName keeps what others chose within one folder.
func fileName(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_' {
			return r
		}
		return '_'
	}, s)
	if s = strings.TrimLeft(s, "."); s == "" {
		return "_"
	}
	return s[:min(len(s), 100)]
}

// withoutSecrets takes out PEM keys and bearer tokens.
func withoutSecrets(text []byte) []byte {
	for _, secret := range []string{
		`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\z)`,
		`eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*`,
		`(?i)bearer [\w.~+/=-]{16,}`,
	} {
		text = regexp.MustCompile(secret).ReplaceAll(text, []byte("(left out)"))
	}
	return text
}
