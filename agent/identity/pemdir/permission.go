package pemdir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// What others than the owner must not be able to do with a file.
const (
	writable fs.FileMode = 0o022
	readable fs.FileMode = 0o044
)

// readFile reads a file of at most that many bytes, after having looked at whose it is. Links are followed: what counts
// is the file that was opened.
func readFile(path string, most int64, forbidden fs.FileMode) ([]byte, error) {
	// Nonblocking, or a named pipe would hold up whoever opens it.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: is not a regular file", path)
	}
	if err := checkOwner(info); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if mode := info.Mode().Perm(); mode&forbidden != 0 {
		return nil, fmt.Errorf("%s: mode %04o lets others than its owner %s it; make it %04o", path, mode, deeds(mode&forbidden), mode&^forbidden)
	}
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(data)) > most {
		err = fmt.Errorf("is larger than %d bytes", most)
	}
	if err != nil {
		clear(data)
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return data, nil
}

func deeds(mode fs.FileMode) string {
	switch {
	case mode&readable != 0 && mode&writable != 0:
		return "read and write"
	case mode&readable != 0:
		return "read"
	}
	return "write"
}

// checkFolder refuses a folder in which others could put another file in the place of one. In a sticky one, as those
// that Secrets are mounted on, they cannot.
func checkFolder(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := checkOwner(info); err != nil {
		return fmt.Errorf("folder %s: %w", path, err)
	}
	if mode := info.Mode(); mode&writable != 0 && mode&fs.ModeSticky == 0 {
		return fmt.Errorf("folder %s: mode %04o lets others than its owner write into it; make it %04o", path, mode.Perm(), mode.Perm()&^writable)
	}
	return nil
}

func checkOwner(info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("owner is not known")
	}
	if uid := os.Geteuid(); stat.Uid != 0 && int(stat.Uid) != uid {
		return fmt.Errorf("belongs to user %d; want root or user %d, who reads it", stat.Uid, uid)
	}
	return nil
}

// stamp tells a changed file from an unchanged one without reading it; it is zero where there is no file. The time is
// that of the last change to contents, mode, owner or name, which nobody can set back.
type stamp struct {
	device, inode uint64
	size, changed int64
}

func stampOf(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return stamp{}
	}
	return stamp{device: stat.Dev, inode: stat.Ino, size: stat.Size, changed: time.Unix(stat.Ctim.Unix()).UnixNano()}
}

// stamps are those of a certificate and its key.
type stamps struct{ cert, key stamp }

func stampsOf(dir string) stamps {
	return stamps{stampOf(filepath.Join(dir, certFile)), stampOf(filepath.Join(dir, keyFile))}
}

// newest is when the files changed last; never in the future, whatever the clock was then.
func (s stamps) newest(now time.Time) time.Time {
	at := time.Unix(0, max(s.cert.changed, s.key.changed))
	if at.After(now) {
		return now
	}
	return at
}
