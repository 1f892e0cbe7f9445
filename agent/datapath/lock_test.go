package datapath

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/culvert-mesh/culvert/policy"
)

func TestSecondAgentOnTheSameFolderIsRefused(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	if d, err := Open(l.opts); !errors.Is(err, ErrInUse) {
		t.Errorf("Open while another has it: %v, want %v", err, ErrInUse)
		if err == nil {
			d.Close()
		}
	}
	must(t, l.d.Close())
	d, err := Open(l.opts)
	must(t, err)
	l.d = d
	t.Cleanup(func() { d.Close() })
}

// A predecessor that is leaving must not take down what its successor has built up.
func TestUninstallUnderAnAgentRemovesNothing(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	l.serve(l.pod, port(pod4, 8080))
	older := filepath.Join(l.opts.BPFFS, "v1")
	must(t, os.Mkdir(older, 0o700))
	before := l.attached()
	if err := Uninstall(l.opts); !errors.Is(err, ErrInUse) {
		t.Errorf("Uninstall under an agent: %v, want %v", err, ErrInUse)
	}
	if after := l.attached(); after != before {
		t.Errorf("%d programs of %d are left", after, before)
	}
	must(t, l.d.Intact())
	l.refused(port(pod4, 8080))
	if _, err := os.Stat(older); err != nil {
		t.Errorf("the other version's folder: %v", err)
	}
	must(t, l.d.Close())
	must(t, Uninstall(l.opts))
	l.passes(port(pod4, 8080))
}

// An agent of another version holds a lock of its own.
func TestUninstallUnderAnAgentOfAnotherVersion(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	must(t, l.d.Close())
	other, err := layout{filepath.Join(l.opts.BPFFS, "v9")}.makeAndLock()
	must(t, err)
	before := l.attached()
	if err := Uninstall(l.opts); !errors.Is(err, ErrInUse) {
		t.Errorf("Uninstall: %v, want %v", err, ErrInUse)
	}
	if after := l.attached(); after != before {
		t.Errorf("%d programs of %d are left", after, before)
	}
	must(t, other.Close())
}

// Whoever has the lock has the folder that is at the path, also while others remove it with theirs.
func TestLockOfAFolderThatComesAndGoes(t *testing.T) {
	l := layout{filepath.Join(t.TempDir(), "v2")}
	var (
		holders, got atomic.Int32
		all          sync.WaitGroup
	)
	for i := range 4 {
		all.Go(func() {
			for range 500 {
				f, err := l.makeAndLock()
				if errors.Is(err, ErrInUse) || errors.Is(err, os.ErrNotExist) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				got.Add(1)
				if n := holders.Add(1); n != 1 || !l.isAt(f) {
					t.Errorf("%d hold the lock; of the folder at the path: %v", n, l.isAt(f))
				}
				holders.Add(-1)
				if i%2 == 0 {
					os.Remove(l.root) // the last act of an uninstall: from here on another may make it anew
				}
				f.Close()
			}
		})
	}
	all.Wait()
	if got.Load() == 0 {
		t.Error("nobody got the lock")
	}
}

func TestInstalledTellsWhetherAnythingIsPinned(t *testing.T) {
	o := Options{BPFFS: mountBPFFS(t)}
	if got, err := Installed(o); got || err != nil {
		t.Errorf("before: %v, %v", got, err)
	}
	l := newLab(t, modes(policy.Strict, nil))
	if got, err := Installed(l.opts); !got || err != nil {
		t.Errorf("after: %v, %v", got, err)
	}
}

func TestAnotherVersionIsNotMixedWithThisOne(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	must(t, l.d.Close())
	older := filepath.Join(l.opts.BPFFS, "v1")
	for _, dir := range []string{older, older + "/maps", older + "/links", older + "/pods", older + "/pods/77"} {
		must(t, os.Mkdir(dir, 0o700))
	}
	if d, err := Open(l.opts); !errors.Is(err, ErrOtherVersion) {
		t.Errorf("Open beside another version: %v, want %v", err, ErrOtherVersion)
		if err == nil {
			d.Close()
		}
	}
	must(t, Uninstall(l.opts))
	if _, err := os.Stat(older); !os.IsNotExist(err) {
		t.Errorf("of the other version is left: %v", err)
	}
	if got, err := Installed(l.opts); got || err != nil {
		t.Errorf("Installed: %v, %v", got, err)
	}
	l.open()
}
