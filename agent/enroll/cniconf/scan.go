package cniconf

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// maxFile bounds a file that is read; real ones have a few KiB.
	maxFile = 1 << 20
	// maxFiles bounds the files of a folder.
	maxFiles = 256
)

// file is one that a runtime would look at.
type file struct {
	name string
	text []byte
	link bool  // a symbolic link
	err  error // why it is of no use: it cannot be read, or is not what its name says

	list   *conflist // of a .conflist
	single *single   // of a .conf or .json
}

// shadow returns the name of the file that this one was generated from, or "".
func (f *file) shadow() string {
	if f.list == nil || !strings.HasSuffix(f.name, shadowSuffix) {
		return ""
	}
	return f.list.shadows
}

// editable reports whether our entry goes into the file itself.
func (f *file) editable() bool { return f.list != nil && !f.link }

// scan reads what a runtime would look at, in its order: by name, byte by byte. containerd fails if the first is not
// valid, CRI-O takes the next.
func scan(dir string) ([]*file, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []*file
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".conflist", ".conf", ".json":
		default:
			continue
		}
		if e.IsDir() {
			continue
		}
		if len(files) == maxFiles {
			return nil, fmt.Errorf("more than %d files", maxFiles)
		}
		f := &file{name: e.Name(), link: e.Type()&fs.ModeSymlink != 0}
		f.read(filepath.Join(dir, e.Name()))
		if errors.Is(f.err, fs.ErrNotExist) && !f.link {
			continue // gone since
		}
		files = append(files, f)
	}
	return files, nil
}

func (f *file) read(path string) {
	if f.text, f.err = readFile(path); f.err != nil {
		return
	}
	if filepath.Ext(f.name) == ".conflist" {
		f.list, f.err = parseList(f.text)
		if f.err == nil && len(f.list.plugins) == 0 {
			f.list, f.err = nil, fmt.Errorf("%w: plugins is empty", errNotAList)
		}
		return
	}
	f.single, f.err = parseSingle(f.text)
}

// readFile reads a regular file of bounded size; it does not hang on a pipe.
func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	return text, err
}
