package cniconf

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// tempSuffix ends the names of files that are being written. Runtimes look at the ending: they would read a
	// .conflist whose name begins with a dot.
	tempSuffix = ".culvert-tmp"
	// maxSwaps bounds how often files are exchanged because somebody else writes at that moment.
	maxSwaps = 8
)

// errUnsettled says that somebody else is writing the file. There will be an event when that is done.
var errUnsettled = errors.New("is being written by somebody else")

// edit replaces the file's content, which was read as expected, by what change makes of it. Readers see the old or
// the new content, never a part. The file keeps its mode, owner and extended attributes.
func edit(path string, expected []byte, change func([]byte) ([]byte, error)) error {
	text, err := change(expected)
	if err != nil || bytes.Equal(text, expected) {
		return err
	}
	temp, err := writeTemp(path, text, path)
	if err != nil {
		return err
	}
	defer os.Remove(temp)
	if err := exchange(temp, path, text, expected); err != nil {
		return err
	}
	return syncDir(path)
}

// exchange puts temp, which has text, in the place of path.
//
// Somebody may write the file between reading and replacing; a rename over it would lose what they wrote. So the two
// are exchanged, which keeps what was there, and that is looked at afterwards. If it is not what was expected,
// it is the newer and goes back, in the same way, because it may not be the newest any more; whoever is writing to it
// goes on doing so under its name. Then the error is errUnsettled. This is sound as long as nobody else exchanges at the
// same time, who may put something older in the place of what we have put: see lockFolder.
//
// Temporary files are in the same folder not only because an exchange wants that: containerd takes no notice of files
// that appear, but of the rename of the temporary one.
func exchange(temp, path string, text, expected []byte) error {
	placed := text
	for n := range maxSwaps {
		err := unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
		switch {
		case n > 0 && err != nil:
			// What belongs there must not be lost with temp.
			return errors.Join(errUnsettled, os.Rename(temp, path))
		case errors.Is(err, fs.ErrNotExist):
			return errUnsettled
		case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP):
			return rename(temp, path, expected) // a file system that cannot exchange
		case err != nil:
			return &os.LinkError{Op: "exchange", Old: temp, New: path, Err: err}
		}
		found, err := readRegular(temp)
		if err == nil && bytes.Equal(found, expected) {
			if n == 0 {
				return nil
			}
			return errUnsettled
		}
		placed, expected = found, placed
	}
	return errUnsettled
}

// rename does the same with a moment in which what somebody else writes is lost.
func rename(temp, path string, expected []byte) error {
	now, err := readRegular(path)
	if err != nil || !bytes.Equal(now, expected) {
		return errUnsettled
	}
	return os.Rename(temp, path)
}

// put writes a file of our own. It looks like the file that it is made from.
func put(path string, text []byte, like string) error {
	temp, err := writeTemp(path, text, like)
	if err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return syncDir(path)
}

func readRegular(path string) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	return readFile(path)
}

// writeTemp writes text to a temporary file beside path, with the attributes of like, and syncs it.
func writeTemp(path string, text []byte, like string) (string, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*"+tempSuffix)
	if err != nil {
		return "", err
	}
	_, err = f.Write(text)
	if err == nil {
		err = copyAttributes(f, like)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// copyAttributes gives f the mode, the owner and (where that is allowed and known) the extended attributes of
// like: SELinux labels and access control lists are such.
func copyAttributes(f *os.File, like string) error {
	var st unix.Stat_t
	if err := unix.Stat(like, &st); err != nil {
		return errUnsettled
	}
	if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := f.Chmod(fs.FileMode(st.Mode & 0o777)); err != nil {
		return err
	}
	names := make([]byte, 4096)
	n, err := unix.Listxattr(like, names)
	if err != nil {
		return nil
	}
	value := make([]byte, 4096)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if n, err := unix.Getxattr(like, name, value); err == nil {
			_ = unix.Setxattr(f.Name(), name, value[:n], 0)
		}
	}
	return nil
}

// syncDir makes a rename in the file's folder last.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// removeTemps removes temporary files of name (of all files, if that is empty) that a process which died has left
// at least age ago.
func removeTemps(dir, name string, age time.Duration) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "."+name) || !strings.HasSuffix(e.Name(), tempSuffix) {
			continue
		}
		if info, infoErr := e.Info(); infoErr != nil || time.Since(info.ModTime()) < age {
			continue
		}
		if removeErr := os.Remove(filepath.Join(dir, e.Name())); !errors.Is(removeErr, fs.ErrNotExist) {
			err = errors.Join(err, removeErr)
		}
	}
	return err
}
