package pemdir

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	ownRoots    = "roots.pem"
	rootsFolder = "roots"
	rootsSuffix = ".pem"

	maxRootsBytes = 1 << 20
	maxDomains    = 64 // foreign ones
)

// roots are the files of roots, as they are known. The own ones, once read, stay until there are better ones; foreign
// ones are forgotten with their file.
type roots struct {
	dir     string
	domain  spiffeid.TrustDomain
	log     *slog.Logger
	files   map[spiffeid.TrustDomain]*rootsFile
	problem string // of the folder, as logged last
}

type rootsFile struct {
	path    string
	seen    stamp
	touched time.Time
	certs   []*x509.Certificate
	problem string // as logged last
}

func newRoots(dir string, td spiffeid.TrustDomain, log *slog.Logger) *roots {
	own := &rootsFile{path: filepath.Join(dir, ownRoots)}
	return &roots{dir: dir, domain: td, log: log, files: map[spiffeid.TrustDomain]*rootsFile{td: own}}
}

// look brings the roots up to date and reports whether any are different.
func (r *roots) look() bool {
	changed, err := r.list()
	r.problem = r.report(r.problem, err, rootsFolder)
	for td, file := range r.files {
		changed = r.refresh(td, file) || changed
	}
	return changed
}

// list makes files what is in the folder of foreign roots, and reports whether any is gone that had some. The error is
// about what was passed over.
func (r *roots) list() (changed bool, err error) {
	folder := filepath.Join(r.dir, rootsFolder)
	entries, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	there := map[spiffeid.TrustDomain]bool{r.domain: true}
	var problems []error
	for _, entry := range entries {
		// Not a folder: it may be that of a namespace with the name roots. Not hidden: mounts keep their own things there.
		name := entry.Name()
		if entry.IsDir() || strings.HasPrefix(name, ".") || !strings.HasSuffix(name, rootsSuffix) {
			continue
		}
		td, err := domainOf(name)
		switch {
		case err != nil:
			problems = append(problems, err)
		case td == r.domain:
			problems = append(problems, fmt.Errorf("%s is the own trust domain, whose roots are read from %s", name, ownRoots))
		case len(there) > maxDomains:
			problems = append(problems, fmt.Errorf("%s is one too many: at most %d foreign trust domains", name, maxDomains))
		default:
			there[td] = true
			if r.files[td] == nil {
				r.files[td] = &rootsFile{path: filepath.Join(folder, name)}
			}
		}
	}
	for td, file := range r.files {
		if !there[td] {
			r.log.Info("foreign roots forgotten: their file is gone", "trust_domain", td.Name())
			delete(r.files, td)
			changed = changed || len(file.certs) > 0
		}
	}
	return changed, errors.Join(problems...)
}

// refresh reads a file again if it was changed, or a moment ago: two changes may leave one stamp.
func (r *roots) refresh(td spiffeid.TrustDomain, file *rootsFile) bool {
	now := stampOf(file.path)
	if now != file.seen {
		file.seen, file.touched = now, time.Now()
	} else if time.Since(file.touched) >= settle {
		return false
	}
	certs, err := r.read(file.path)
	if err == nil && slices.EqualFunc(certs, file.certs, (*x509.Certificate).Equal) {
		return false
	}
	if err != nil {
		if time.Since(file.touched) >= settle-lookInterval || len(file.certs) == 0 {
			file.problem = r.report(file.problem, err, td.Name())
		}
		return false
	}
	file.certs, file.problem = certs, ""
	r.log.Info("roots read", "trust_domain", td.Name(), "file", file.path, "count", len(certs), "first", certs[0].Subject.String(), "expires", certs[0].NotAfter)
	return true
}

func (r *roots) read(path string) ([]*x509.Certificate, error) {
	for _, folder := range []string{r.dir, filepath.Dir(path)} {
		if err := checkFolder(folder); err != nil {
			return nil, err
		}
	}
	return readCertificates(path, maxRootsBytes)
}

// report logs a problem when it appears or changes, and returns it.
func (r *roots) report(before string, err error, of string) string {
	if err == nil {
		return ""
	}
	if text := err.Error(); text != before {
		r.log.Warn("roots not read: those known stay in force", "of", of, "error", text)
	}
	return err.Error()
}

// bundles returns what is known, the own trust domain's first.
func (r *roots) bundles() []*x509bundle.Bundle {
	all := []*x509bundle.Bundle{x509bundle.FromX509Authorities(r.domain, r.files[r.domain].certs)}
	for td, file := range r.files {
		if td != r.domain && len(file.certs) > 0 {
			all = append(all, x509bundle.FromX509Authorities(td, file.certs))
		}
	}
	slices.SortFunc(all[1:], func(a, b *x509bundle.Bundle) int { return a.TrustDomain().Compare(b.TrustDomain()) })
	return all
}
