package pemdir

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-mesh/culvert/agent/identity"
	"github.com/culvert-mesh/culvert/agent/identity/ca/catest"
)

// watching is a Watch that runs in a bubble with a clock of its own.
type watching struct {
	t   *testing.T
	end context.CancelFunc

	mu    sync.Mutex
	svids []*identity.SVID
	err   error
}

func (f tree) watch(t *testing.T, folder *Folder) *watching {
	ctx, cancel := context.WithCancel(t.Context())
	w := &watching{t: t, end: cancel}
	go func() {
		err := folder.Watch(ctx, workload(), func(s *identity.SVID) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.svids = append(w.svids, s)
		})
		w.mu.Lock()
		defer w.mu.Unlock()
		w.err = err
	}()
	return w
}

// after lets time pass and returns what came of it.
func (w *watching) after(d time.Duration) ([]*identity.SVID, error) {
	time.Sleep(d)
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.svids, w.err
}

// pass lets time pass, and looks at the last of so many SVIDs.
func (w *watching) pass(d time.Duration, count int, want *x509.Certificate) {
	w.t.Helper()
	svids, err := w.after(d)
	if err != nil {
		w.t.Fatalf("Watch ended: %v", err)
	}
	if len(svids) != count || !svids[count-1].Certificates[0].Equal(want) {
		w.t.Fatalf("%d SVIDs, want %d with another one last", len(svids), count)
	}
}

func TestWatchTakesUpEachWayOfReplacing(t *testing.T) {
	tests := map[string]struct {
		first   func(f tree, p pair)
		replace func(f tree, p pair)
	}{
		"written over, the key a second after its certificate": {tree.put, func(f tree, p pair) {
			f.write(filepath.Join(f.cart, certFile), p.cert, 0o644)
			time.Sleep(lookInterval)
			f.write(filepath.Join(f.cart, keyFile), p.key, 0o600)
		}},
		"written over in two halves": {tree.put, func(f tree, p pair) {
			f.write(filepath.Join(f.cart, keyFile), p.key, 0o600)
			f.write(filepath.Join(f.cart, certFile), p.cert[:len(p.cert)/2], 0o644)
			time.Sleep(lookInterval)
			f.write(filepath.Join(f.cart, certFile), p.cert, 0o644)
		}},
		"renamed file by file, the key first": {tree.put, func(f tree, p pair) {
			f.putIn(f.cart+".new", p)
			f.rename(filepath.Join(f.cart+".new", keyFile), filepath.Join(f.cart, keyFile))
			time.Sleep(lookInterval)
			f.rename(filepath.Join(f.cart+".new", certFile), filepath.Join(f.cart, certFile))
		}},
		"the folder renamed": {tree.put, func(f tree, p pair) {
			f.putIn(f.cart+".new", p)
			f.rename(f.cart, f.cart+".old")
			time.Sleep(lookInterval)
			f.rename(f.cart+".new", f.cart)
		}},
		"a mounted Secret": {
			func(f tree, p pair) {
				f.mount("..2026_1", p)
				for _, name := range []string{certFile, keyFile} {
					if err := os.Symlink("..data/"+name, filepath.Join(f.cart, name)); err != nil {
						f.t.Fatal(err)
					}
				}
			},
			func(f tree, p pair) { f.mount("..2026_2", p) },
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newTree(t)
				first, second := f.pair(), f.pair()
				tt.first(f, first)
				folder := f.open()
				defer folder.Close()
				w := f.watch(t, folder)
				defer w.end()
				w.pass(time.Hour, 1, first.leaf)
				tt.replace(f, second)
				w.pass(lookInterval, 2, second.leaf)
				w.pass(time.Hour, 2, second.leaf)
			})
		})
	}
}

// mount makes the files appear as kubelet does: in a folder of their own, to which one link leads.
func (f tree) mount(name string, p pair) {
	f.t.Helper()
	f.putIn(filepath.Join(f.cart, name), p)
	if err := os.Symlink(name, filepath.Join(f.cart, "..data_tmp")); err != nil {
		f.t.Fatal(err)
	}
	f.rename(filepath.Join(f.cart, "..data_tmp"), filepath.Join(f.cart, "..data"))
}

func TestWatchEndsWhenFilesStayBad(t *testing.T) {
	tests := map[string]struct {
		spoil func(f tree)
		want  string
	}{
		"one of the two replaced": {func(f tree) {
			f.write(filepath.Join(f.cart, certFile), f.pair().cert, 0o644)
		}, "one of the two was replaced without the other"},
		"deleted": {func(f tree) {
			if err := os.RemoveAll(f.cart); err != nil {
				f.t.Fatal(err)
			}
		}, "want tls.crt and tls.key in"},
		"the mode of the key": {func(f tree) {
			if err := os.Chmod(filepath.Join(f.cart, keyFile), 0o644); err != nil {
				f.t.Fatal(err)
			}
		}, "make it 0600"},
		"roots that did not sign it": {func(f tree) {
			f.write(filepath.Join(f.dir, ownRoots), catest.CertPEM(catest.Root(f.t, "other")), 0o644)
		}, "does not verify"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newTree(t)
				good := f.pair()
				f.put(good)
				folder := f.open()
				defer folder.Close()
				w := f.watch(t, folder)
				defer w.end()
				w.pass(time.Hour, 1, good.leaf)
				tt.spoil(f)
				svids, err := w.after(settle + 2*lookInterval)
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error %v, want %q in it", err, tt.want)
				}
				if len(svids) != 1 {
					t.Errorf("%d SVIDs, want the good one alone", len(svids))
				}
			})
		})
	}
}

func TestWatchEndsWhenTheCertificateExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newTree(t)
		p := f.pair(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(time.Hour) })
		f.put(p)
		folder := f.open()
		defer folder.Close()
		w := f.watch(t, folder)
		defer w.end()
		w.pass(time.Hour-2*time.Second, 1, p.leaf)
		if _, err := w.after(4 * time.Second); err == nil || !strings.Contains(err.Error(), "expired at") {
			t.Errorf("error %v", err)
		}
	})
}

func TestRootsAreFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newTree(t)
		p := f.pair()
		f.put(p)
		folder := f.open()
		defer folder.Close()
		w := f.watch(t, folder)
		defer w.end()
		w.pass(time.Minute, 1, p.leaf)
		known := func() string {
			var all []string
			for _, b := range folder.Bundles() {
				all = append(all, fmt.Sprintf("%s %d", b.TrustDomain().Name(), len(b.X509Authorities())))
			}
			return strings.Join(all, ", ")
		}
		foreign, own := filepath.Join(f.dir, rootsFolder), filepath.Join(f.dir, ownRoots)
		f.mkdir(foreign)
		partner := catest.CertPEM(catest.Root(t, "partner"))
		both := append(catest.CertPEM(f.root), catest.CertPEM(catest.Root(t, "next"))...)
		for _, step := range []struct {
			do      func()
			want    string
			changed bool
			svids   int
		}{
			{func() { f.write(filepath.Join(foreign, "partner.example.pem"), partner, 0o644) }, "cluster.local 1, partner.example 1", true, 2},
			{func() { f.write(own, both, 0o644) }, "cluster.local 2, partner.example 1", true, 2},
			{func() { f.write(own, both[:len(both)/4], 0o644) }, "cluster.local 2, partner.example 1", false, 2},
			{func() { f.write(own, both, 0o666) }, "cluster.local 2, partner.example 1", false, 2},
			{func() { _ = os.Remove(own) }, "cluster.local 2, partner.example 1", false, 2},
			{func() { f.write(filepath.Join(foreign, "cluster.local.pem"), partner, 0o644) }, "cluster.local 2, partner.example 1", false, 2},
			{func() { f.write(filepath.Join(foreign, "No Domain.pem"), partner, 0o644) }, "cluster.local 2, partner.example 1", false, 2},
			{func() { f.write(filepath.Join(foreign, "broken.example.pem"), []byte("x"), 0o644) }, "cluster.local 2, partner.example 1", false, 2},
			{func() { _ = os.Remove(filepath.Join(foreign, "partner.example.pem")) }, "cluster.local 2", true, 3},
		} {
			changed := folder.Changed()
			step.do()
			time.Sleep(settle + 2*lookInterval)
			synctest.Wait()
			if got := known(); got != step.want {
				t.Errorf("bundles %q, want %q", got, step.want)
			}
			select {
			case <-changed:
				if !step.changed {
					t.Errorf("%s: told of a change", step.want)
				}
			default:
				if step.changed {
					t.Errorf("%s: not told of the change", step.want)
				}
			}
			w.pass(0, step.svids, p.leaf)
		}
		svids, _ := w.after(0)
		if got := svids[1].FederatesWith; len(got) != 1 || got[0].Name() != "partner.example" {
			t.Errorf("federates with %v", got)
		}
		if got := svids[2].FederatesWith; len(got) != 0 {
			t.Errorf("federates with %v after its roots are gone", got)
		}
	})
}

// A look costs two stat calls: 10,000 identities cost b.Elapsed/N times 10,000 of CPU each second.
func BenchmarkLook(b *testing.B) {
	f := newTree(b)
	f.put(f.pair())
	for b.Loop() {
		if stampsOf(f.cart) == (stamps{}) {
			b.Fatal("no files")
		}
	}
}
