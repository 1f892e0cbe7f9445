package image

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Layer is a set of files. Folders above them are added as needed.
type Layer struct {
	files   map[string]file // by path, without a leading slash
	archive string          // a tar archive that is the layer, instead of files
}

// file is what one path holds: the file of the machine in source, a symbolic link, or content.
type file struct {
	source  string
	link    string
	content []byte
	mode    fs.FileMode
}

// NewLayer returns an empty layer.
func NewLayer() *Layer { return &Layer{files: map[string]file{}} }

// ArchiveLayer returns a layer that is a tar archive of this machine as it is: with its owners, devices and times.
func ArchiveLayer(path string) *Layer { return &Layer{archive: path} }

// AddFile adds a file of this machine, executable or not as it is here. Symbolic links are followed.
func (l *Layer) AddFile(name, source string) *Layer {
	l.files[clean(name)] = file{source: source}
	return l
}

// AddContent adds a file with that content.
func (l *Layer) AddContent(name string, content []byte, mode fs.FileMode) *Layer {
	l.files[clean(name)] = file{content: content, mode: mode}
	return l
}

// AddLink adds a symbolic link.
func (l *Layer) AddLink(name, target string) *Layer {
	l.files[clean(name)] = file{link: target, mode: fs.ModeSymlink | 0o777}
	return l
}

// AddDir adds an empty folder. One with mode 1777 is anybody's.
func (l *Layer) AddDir(name string, mode fs.FileMode) *Layer {
	l.files[clean(name)] = file{mode: fs.ModeDir | mode}
	return l
}

// AddTree adds everything below a folder of this machine; symbolic links stay links.
func (l *Layer) AddTree(source string) error {
	return filepath.WalkDir(source, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("layer from %s: %w", source, err)
		}
		name := clean(strings.TrimPrefix(p, source))
		switch {
		case d.IsDir():
			return nil
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return fmt.Errorf("layer from %s: %w", source, err)
			}
			l.AddLink(name, target)
		default:
			l.AddFile(name, p)
		}
		return nil
	})
}

// clean is a path as archives have it, relative to the image's root.
func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// write writes the layer's own archive. Everything belongs to root.
func (l *Layer) write(w io.Writer) error {
	if l.archive != "" {
		return copyFile(w, l.archive)
	}
	out := tar.NewWriter(w)
	for _, name := range l.names() {
		f, ok := l.files[name]
		if !ok {
			f = file{mode: fs.ModeDir | 0o755}
		}
		if err := f.write(out, name); err != nil {
			return fmt.Errorf("layer: /%s: %w", name, err)
		}
	}
	return out.Close()
}

func copyFile(w io.Writer, path string) error {
	in, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("layer: %w", err)
	}
	defer in.Close()
	if _, err := io.Copy(w, in); err != nil {
		return fmt.Errorf("layer %s: %w", path, err)
	}
	return nil
}

// names returns every path with the folders above it, which sort before what they contain.
func (l *Layer) names() []string {
	all := map[string]bool{}
	for name := range l.files {
		for ; name != "." && name != ""; name = path.Dir(name) {
			all[name] = true
		}
	}
	var names []string
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (f file) write(out *tar.Writer, name string) error {
	h := &tar.Header{Name: name, ModTime: epoch(), Format: tar.FormatPAX}
	switch {
	case f.source != "":
		return f.copy(out, h)
	case f.mode.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case f.link != "":
		h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
	default:
		h.Typeflag, h.Size = tar.TypeReg, int64(len(f.content))
	}
	h.Mode = int64(f.mode.Perm())
	if f.mode&fs.ModeSticky != 0 {
		h.Mode |= 0o1000
	}
	if err := out.WriteHeader(h); err != nil {
		return err
	}
	_, err := out.Write(f.content)
	return err
}

// copy writes a file of this machine. Only its content and whether it is executable count, so that the
// archive does not depend on who unpacked or built it.
func (f file) copy(out *tar.Writer, h *tar.Header) error {
	in, err := os.Open(f.source)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", f.source)
	}
	h.Typeflag, h.Size, h.Mode = tar.TypeReg, info.Size(), 0o644
	if info.Mode()&0o111 != 0 {
		h.Mode = 0o755
	}
	if err := out.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return err
}
