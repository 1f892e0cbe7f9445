package datapath

import (
	"errors"
	"os"
	"path/filepath"
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
