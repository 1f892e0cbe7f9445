package datapath

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/policy"
)

func forceDetach(t *testing.T, pin string) {
	t.Helper()
	l, err := link.LoadPinnedLink(pin, nil)
	must(t, err)
	must(t, l.Detach())
	must(t, l.Close())
}

func (l *lab) removeLink() {
	l.t.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(l.pod.Fd()))
	must(l.t, err)
	defer h.Close()
	i, err := h.LinkByName("eth0")
	must(l.t, err)
	must(l.t, h.LinkDel(i))
}

func TestIntact(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, l *lab)
		want   string // of the error; empty: none
	}{
		{"untouched", func(*testing.T, *lab) {}, ""},
		{"pin folder removed", func(t *testing.T, l *lab) { must(t, os.RemoveAll(l.d.layout.root)) }, "pin folder"},
		{"pin folder made anew", func(t *testing.T, l *lab) {
			must(t, os.RemoveAll(l.d.layout.root))
			must(t, os.Mkdir(l.d.layout.root, 0o700))
		}, "pin folder"},
		{"mounted over", func(t *testing.T, l *lab) {
			must(t, unix.Mount("bpf", l.opts.BPFFS, "bpf", 0, ""))
			t.Cleanup(func() { must(t, unix.Unmount(l.opts.BPFFS, unix.MNT_DETACH)) })
		}, "pin folder"},
		{"pin of a node's link removed", func(t *testing.T, l *lab) { must(t, os.Remove(l.d.layout.linkPin("culvert_connect4"))) }, "culvert_connect4"},
		{"node's link detached", func(t *testing.T, l *lab) { forceDetach(t, l.d.layout.linkPin("culvert_connect6")) }, "culvert_connect6"},
		{"pin of a map removed", func(t *testing.T, l *lab) { must(t, os.Remove(filepath.Join(l.d.layout.maps(), "modes"))) }, "maps/modes"},
		{"pins of a pod removed", func(t *testing.T, l *lab) { must(t, os.RemoveAll(l.d.layout.pod(l.w.Cookie))) }, "lookup"},
		{"pin of a pod's guard removed", func(t *testing.T, l *lab) { must(t, os.Remove(l.d.podPin(l.w.Cookie, egressPin))) }, "egress"},
		{"pod's link detached", func(t *testing.T, l *lab) { forceDetach(t, l.d.podPin(l.w.Cookie, lookupPin)) }, "off the network namespace"},
		{"pod's interface gone", func(_ *testing.T, l *lab) { l.removeLink() }, ""},
		{"pod gone", func(t *testing.T, l *lab) { l.endPod() }, ""},
		{"pod detached", func(t *testing.T, l *lab) { must(t, l.d.Detach(l.w.Cookie)) }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t, modes(policy.Strict, nil))
			must(t, l.d.Intact())
			c.damage(t, l)
			err := l.d.Intact()
			if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("Intact: %v, want %q", err, c.want)
			}
			if c.want == "" {
				return
			}
			// The next process makes it anew.
			must(t, l.d.Close())
			l.open()
			must(t, l.d.SetPolicy(l.w.Cookie, modes(policy.Strict, nil)))
			must(t, l.d.Attach(l.w))
			must(t, l.d.Intact())
			l.serve(l.pod, port(pod4, 8080))
			l.refused(port(pod4, 8080))
		})
	}
}

func TestIntactIsCheap(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	best := time.Hour
	for range 20 {
		begin := time.Now()
		must(t, l.d.Intact())
		best = min(best, time.Since(begin))
	}
	t.Logf("Intact takes %s", best)
	if best > 10*time.Millisecond {
		t.Errorf("Intact takes %s", best)
	}
}

// endPod ends the namespace, and returns when the kernel has cleaned up.
func (l *lab) endPod() {
	l.t.Helper()
	must(l.t, l.pod.Close())
	eventually(l.t, "the kernel takes the links off", func() bool {
		hanging, _, err := l.d.podLinks(l.w.Cookie)
		return err == nil && len(hanging) == 0
	})
}

func TestGone(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(t *testing.T, l *lab)
		ends   bool
	}{
		{"attached", func(*testing.T, *lab) {}, false},
		{"without its interface", func(_ *testing.T, l *lab) { l.removeLink() }, false},
		{"link taken off by force", func(t *testing.T, l *lab) { forceDetach(t, l.d.podPin(l.w.Cookie, lookupPin)) }, false},
		{"attached by half", func(t *testing.T, l *lab) { must(t, os.Remove(l.d.podPin(l.w.Cookie, lookupPin))) }, false},
		{"no pins", func(t *testing.T, l *lab) { must(t, os.RemoveAll(l.d.layout.pod(l.w.Cookie))) }, false},
		{"ended", func(*testing.T, *lab) {}, true},
		{"ended, attached by half", func(t *testing.T, l *lab) { must(t, os.Remove(l.d.podPin(l.w.Cookie, lookupPin))) }, true},
		{"ended, no pins", func(t *testing.T, l *lab) { must(t, os.RemoveAll(l.d.layout.pod(l.w.Cookie))) }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t, modes(policy.Strict, nil))
			c.change(t, l)
			if c.ends {
				l.endPod()
			}
			must(t, l.d.Close())
			l.open() // a successor, that knows nothing of the workload
			begin := time.Now()
			gone, err := l.d.Gone(l.w.Cookie)
			if err != nil || gone != c.ends {
				t.Errorf("Gone: %v, %v, want %v", gone, err, c.ends)
			}
			t.Logf("took %s", time.Since(begin))
			must(t, l.d.Intact())
		})
	}
}

// The links come off one after another; whatever Gone meets meanwhile is no error.
func TestGoneWithoutWaiting(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	must(t, l.pod.Close())
	eventually(t, "Gone", func() bool {
		gone, err := l.d.Gone(l.w.Cookie)
		must(t, err)
		return gone
	})
	must(t, l.d.Detach(l.w.Cookie))
}
