// Package pemdir takes SVIDs from a folder of PEM files, for machines without any CA. Whoever runs the machine puts the
// files there and replaces them in time:
//
//	DIR/roots.pem                                 roots of the own trust domain
//	DIR/roots/<trust domain>.pem                  roots of a foreign one, whose members may be peers of every identity
//	DIR/<namespace>/<service account>/tls.crt     the chain, leaf first
//	DIR/<namespace>/<service account>/tls.key     its key, PKCS #8 or SEC 1
//
// Files may be replaced in any way: written over, renamed, as the links of a mounted Secret. A certificate and a key are
// taken up together or not at all: as long as the two do not fit, what was good before stays. As ssh does, the package
// refuses a key that others may read, and anything that others may write.
package pemdir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/culvert-mesh/culvert/agent/identity"
)

const (
	// lookInterval is how often files are looked at. Being told of changes (inotify) needs a watch on every folder up to
	// the root, misses mounts, links into other folders and network file systems, and so needs looking all the same.
	lookInterval = time.Second
	// settle is how long files must have been left alone before what is wrong with them counts: until then somebody may
	// be in the middle of replacing them.
	settle = 3 * time.Second
)

// Options of a Folder. All are required.
type Options struct {
	Dir         string
	TrustDomain spiffeid.TrustDomain
	Logger      *slog.Logger
}

// Folder is the Issuer. Close ends it.
type Folder struct {
	dir    string
	domain spiffeid.TrustDomain
	log    *slog.Logger
	stop   context.CancelFunc
	tasks  sync.WaitGroup

	roots *roots // only the goroutine that looks at them uses it

	mu      sync.Mutex
	bundles []*x509bundle.Bundle
	changed chan struct{} // closed and replaced when bundles is
}

var (
	_ identity.Notifier = (*Folder)(nil)
	_ identity.Watcher  = (*Folder)(nil)
)

// New returns the Issuer. The folder must exist; what is in it may come later.
func New(o Options) (*Folder, error) {
	info, err := os.Stat(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("SVID folder: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("SVID folder %s: is not a folder", o.Dir)
	}
	ctx, stop := context.WithCancel(context.Background())
	f := &Folder{
		dir: filepath.Clean(o.Dir), domain: o.TrustDomain, log: o.Logger, stop: stop,
		bundles: []*x509bundle.Bundle{x509bundle.New(o.TrustDomain)}, changed: make(chan struct{}),
	}
	f.roots = newRoots(f.dir, f.domain, f.log)
	f.lookAtRoots()
	f.tasks.Go(func() { f.followRoots(ctx) })
	return f, nil
}

// Close ends the following of roots. Watches end with their contexts.
func (f *Folder) Close() {
	f.stop()
	f.tasks.Wait()
}

// String implements identity.Issuer.
func (f *Folder) String() string { return "PEM files in " + f.dir }

// Bundles implements identity.Issuer.
func (f *Folder) Bundles() []*x509bundle.Bundle {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bundles
}

// Changed implements identity.Notifier.
func (f *Folder) Changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

func (f *Folder) followRoots(ctx context.Context) {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f.lookAtRoots()
		}
	}
}

func (f *Folder) lookAtRoots() {
	if !f.roots.look() {
		return
	}
	bundles := f.roots.bundles()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bundles = bundles
	close(f.changed)
	f.changed = make(chan struct{})
}

// Issue implements identity.Issuer: it returns what is in the files, and waits a moment for files that are just being
// replaced.
func (f *Folder) Issue(ctx context.Context, w identity.Workload) (*identity.SVID, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var first *identity.SVID
	err := f.Watch(ctx, w, func(s *identity.SVID) {
		first = s
		cancel()
	})
	if first != nil {
		return first, nil
	}
	return nil, err
}

// Watch implements identity.Watcher. It ends with an error when what is in the files has been of no use for a moment,
// also after they were good, or when the last good certificate has expired.
func (f *Folder) Watch(ctx context.Context, w identity.Workload, got func(*identity.SVID)) error {
	dir, err := f.folderOf(w.ID)
	if err != nil {
		return err
	}
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	var (
		changed = f.Changed()
		last    *identity.SVID
		seen    = stampsOf(dir)
		touched = seen.newest(time.Now())
	)
	for look := true; ; {
		if look {
			svid, err := f.read(dir, w.ID)
			switch {
			case err == nil && !same(last, svid):
				last = svid
				got(svid)
			case err == nil:
				identity.Wipe(svid.PrivateKey)
			case time.Since(touched) >= settle:
				return missing(err, dir)
			}
			look = err != nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
			changed, look = f.Changed(), true
		case <-tick.C:
			now := stampsOf(dir)
			if now != seen {
				seen, touched = now, time.Now()
			}
			// Two changes within a tick of the file system's clock leave the same stamp: look a little longer.
			fresh := time.Since(touched) < settle+lookInterval
			look = look || fresh || last != nil && !time.Now().Before(last.Certificates[0].NotAfter)
		}
	}
}

// missing says what to do about files that are not there.
func missing(err error, dir string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("SVID: %w (want %s and %s in %s)", err, certFile, keyFile, dir)
	}
	return fmt.Errorf("SVID: %w", err)
}
