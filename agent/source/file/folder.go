package file

import (
	"crypto/sha256"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/culvert-mesh/culvert/agent/source"
)

// folder is what is known of a folder of manifests. It remembers the last good version of each object, so
// that a mistake in a file opens nothing. It is used by one goroutine.
type folder struct {
	dir     string
	root    string // the mesh's root namespace
	log     *slog.Logger
	files   map[string]*fileState
	inForce map[objectID]*object
	err     error           // why the folder itself cannot be read
	logged  map[string]bool // the problems that were reported and still last
}

// fileState is one file: what its present contents say, and what stays from before because of what is wrong with it.
type fileState struct {
	stamp  stamp
	sum    [sha256.Size]byte
	known  bool  // it was read at least once
	err    error // why it could not be read the last time
	fresh  []*object
	kept   []*object
	broken []*broken
	unread []*broken // those that may be policies, without an earlier good version
}

// stamp tells a changed file from an unchanged one without reading it.
type stamp struct {
	modified, changed time.Time
	size              int64
	inode             uint64
}

func stampOf(info fs.FileInfo) stamp {
	s := stamp{modified: info.ModTime(), size: info.Size()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.inode, s.changed = sys.Ino, time.Unix(sys.Ctim.Unix())
	}
	return s
}

func newFolder(dir, root string, log *slog.Logger) *folder {
	return &folder{dir: dir, root: root, log: log, files: map[string]*fileState{}, logged: map[string]bool{}}
}

// scan brings the files up to date and reports whether anything is different. Files for which touched
// answers true are read even when they look unchanged: a clock that ticks every few milliseconds does not tell
// two writes apart.
func (f *folder) scan(touched func(name string) bool) bool {
	names, err := list(f.dir)
	if err != nil {
		changed := f.err == nil || f.err.Error() != err.Error()
		f.err = err
		return changed
	}
	changed := f.err != nil
	f.err = nil
	for _, name := range names {
		changed = f.refresh(name, touched(name)) || changed
	}
	for name := range f.files {
		if _, found := slices.BinarySearch(names, name); !found {
			delete(f.files, name)
			changed = true
		}
	}
	return changed
}

// scanOnly brings these files up to date and looks at no other: in a folder of ten thousand, looking is what
// takes the time. If the folder itself is in doubt, it is all scanned.
func (f *folder) scanOnly(names map[string]bool) bool {
	if _, err := os.Stat(f.dir); err != nil || f.err != nil {
		return f.scan(func(name string) bool { return names[name] })
	}
	changed := false
	for name := range names {
		path := filepath.Join(f.dir, name)
		info, err := os.Lstat(path)
		switch {
		case !isManifest(name):
		case err == nil && isFile(f.dir, fs.FileInfoToDirEntry(info)):
			changed = f.refresh(name, true) || changed
		case f.files[name] == nil:
		case err == nil || errors.Is(err, fs.ErrNotExist) && exists(f.dir):
			delete(f.files, name)
			changed = true
		default: // neither there nor deleted
			return f.scan(func(name string) bool { return names[name] })
		}
	}
	return changed
}

func (f *folder) refresh(name string, touched bool) bool {
	path := filepath.Join(f.dir, name)
	before := f.files[name]
	var now stamp
	info, err := os.Stat(path)
	if err == nil {
		now = stampOf(info)
	}
	if before != nil && before.err == nil && !touched && err == nil && now == before.stamp {
		return false
	}
	var data []byte
	if err == nil {
		data, err = readFile(path)
	}
	if errors.Is(err, fs.ErrNotExist) && !exists(path) {
		return false // deleted since it was listed: the event of that is on its way
	}
	sum := sha256.Sum256(data)
	if before != nil && before.same(sum, err) {
		before.stamp = now
		return false
	}
	after := f.update(path, before, data, err)
	after.stamp, after.sum = now, sum
	f.files[name] = after
	return true
}

// same reports whether reading the file again brought nothing new.
func (s *fileState) same(sum [sha256.Size]byte, err error) bool {
	if err != nil {
		return s.err != nil && s.err.Error() == err.Error()
	}
	return s.err == nil && s.sum == sum
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// update works out what a file means now, given what it meant before.
func (f *folder) update(path string, before *fileState, data []byte, err error) *fileState {
	if before == nil {
		before = &fileState{}
	}
	had := slices.Concat(before.fresh, before.kept)
	if err == nil && len(data) == 0 && len(had) > 0 {
		// What a full disk, or a writer that was interrupted, leaves behind.
		err = errors.New("is empty: what it held stays in force until the file is deleted or written anew")
	}
	if err != nil {
		now := &fileState{known: before.known, err: err, kept: had, broken: unreadable(path, err).broken}
		if !before.known {
			now.unread = now.broken
		}
		return now
	}
	p := parse(path, data)
	now := &fileState{known: true, fresh: p.objects, broken: p.broken}
	now.keep(had, f.inForce)
	return now
}

// keep decides what stays in force because the file has broken documents, and which of these never had a good version.
func (s *fileState) keep(had []*object, inForce map[objectID]*object) {
	fresh := make(map[objectID]bool, len(s.fresh))
	for _, o := range s.fresh {
		fresh[o.id] = true
	}
	kept := map[objectID]*object{}
	if slices.ContainsFunc(s.broken, func(b *broken) bool { return !b.repeated }) {
		for _, o := range had {
			if !fresh[o.id] {
				kept[o.id] = o
			}
		}
	}
	orphans := map[objectID]bool{} // kept policies, one of which an anonymous document may have been
	for id := range kept {
		if id.kind == kindPolicy {
			orphans[id] = true
		}
	}
	var anonymous []*broken
	for _, b := range s.broken {
		switch {
		case b.repeated:
		case b.anonymous:
			if b.policy {
				anonymous = append(anonymous, b)
			}
		case kept[b.id] == nil && inForce[b.id] != nil && !fresh[b.id]:
			kept[b.id] = inForce[b.id]
		case kept[b.id] == nil && !fresh[b.id] && b.policy:
			s.unread = append(s.unread, b)
		}
		delete(orphans, b.id)
	}
	if len(anonymous) > len(orphans) {
		s.unread = append(s.unread, anonymous...)
	}
	s.kept = sorted(kept)
}

func sorted(objects map[objectID]*object) []*object {
	return slices.SortedFunc(maps.Values(objects), func(a, b *object) int {
		if a.place.document != b.place.document {
			return a.place.document - b.place.document
		}
		return a.place.line - b.place.line
	})
}

// contents puts the files together. An object that stands in two files counts as it is in the first; one
// that merely stays from before gives way to any that is really there.
func (f *folder) contents() source.Contents {
	names := slices.Sorted(maps.Keys(f.files))
	byID := make(map[objectID]*object, len(f.inForce))
	var all []*object
	var problems []*broken
	for _, name := range names {
		for _, o := range f.files[name].fresh {
			if first := byID[o.id]; first != nil {
				problems = append(problems, repeated(o, first))
				continue
			}
			byID[o.id] = o
			all = append(all, o)
		}
	}
	for _, name := range names {
		for _, o := range f.files[name].kept {
			if byID[o.id] == nil {
				byID[o.id] = o
				all = append(all, o)
			}
		}
		problems = append(problems, f.files[name].broken...)
	}
	f.inForce = byID

	c := assemble(all)
	if f.err != nil {
		problems = append(problems, unreadable(f.dir, f.err).broken...)
	}
	for _, b := range problems {
		c.Problems = append(c.Problems, b.problems()...)
	}
	c.UnreadablePolicies = f.unread(names)
	f.report(c.Problems)
	return c
}

func (f *folder) unread(names []string) []string {
	var namespaces []string
	for _, name := range names {
		for _, b := range f.files[name].unread {
			if b.anonymous || f.inForce[b.id] == nil {
				namespaces = append(namespaces, b.namespace)
				f.warn(b)
			}
		}
	}
	slices.Sort(namespaces)
	return slices.Compact(namespaces)
}

// warn says once what it means that a policy was never good.
func (f *folder) warn(b *broken) {
	where := "namespace " + b.namespace
	if b.namespace == "" || b.namespace == f.root {
		where = "every namespace"
	}
	if text := b.errs[0].Error(); !f.logged[text] {
		f.log.Error("a policy cannot be read and has no earlier version: nothing may be loosened", "where", where, "error", text)
	}
}

// report logs each problem when it appears and once more when it is gone.
func (f *folder) report(problems []source.Problem) {
	now := make(map[string]bool, len(problems))
	for _, p := range problems {
		text := p.Err.Error()
		if now[text] = true; !f.logged[text] {
			f.log.Error("manifest not used: the last good state stays in force", "object", p.Object, "error", text)
		}
	}
	for text := range f.logged {
		if !now[text] {
			f.log.Info("manifest problem solved", "error", text)
		}
	}
	f.logged = now
}
