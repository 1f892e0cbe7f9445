package cniconf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// installBinary copies the plugin to where the runtime looks for it, unless the same is there. It reports whether it
// wrote. A plugin that is running keeps the file that it was started from.
func installBinary(from, dir string) (bool, error) {
	path := filepath.Join(dir, PluginName)
	if sameBinary(from, path) {
		return false, nil
	}
	if _, err := os.Stat(dir); err != nil {
		return false, err
	}
	in, err := os.Open(from)
	if err != nil {
		return false, err
	}
	defer in.Close()
	out, err := os.CreateTemp(dir, "."+PluginName+".*"+tempSuffix)
	if err != nil {
		return false, err
	}
	_, err = io.Copy(out, in)
	if err == nil {
		err = out.Chmod(0o755)
	}
	if err == nil {
		err = out.Sync()
	}
	err = errors.Join(err, out.Close())
	if err == nil {
		err = os.Rename(out.Name(), path)
	}
	if err != nil {
		return false, errors.Join(fmt.Errorf("copying %s: %w", from, err), os.Remove(out.Name()))
	}
	return true, syncDir(path)
}

// sameBinary reports whether both files have the same content and the second can be executed.
func sameBinary(from, path string) bool {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != 0o755 {
		return false
	}
	a, err := os.Open(from)
	if err != nil {
		return false
	}
	defer a.Close()
	b, err := os.Open(path)
	if err != nil {
		return false
	}
	defer b.Close()
	if want, err := a.Stat(); err != nil || want.Size() != info.Size() {
		return false
	}
	return sameContent(a, b)
}

func sameContent(a, b io.Reader) bool {
	x, y := make([]byte, 256<<10), make([]byte, 256<<10)
	for {
		n, errA := io.ReadFull(a, x)
		m, errB := io.ReadFull(b, y)
		if n != m || !bytes.Equal(x[:n], y[:m]) {
			return false
		}
		if errA != nil || errB != nil {
			return ended(errA) && ended(errB)
		}
	}
}

func ended(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

func removeBinary(dir string) error {
	err := os.Remove(filepath.Join(dir, PluginName))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, removeTemps(dir, PluginName, 0))
}
