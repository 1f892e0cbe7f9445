package datapath

import (
	"errors"
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
