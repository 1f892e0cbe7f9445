package datapath

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/policy"
)

// Without the programs, the ends of a delivery would go on talking to each other's addresses on the wire.
func TestUninstallLetsNothingOfADeliveryOut(t *testing.T) {
	for _, a := range []struct {
		name        string
		pod, client netip.Addr
	}{{"IPv4", pod4, client4}, {"IPv6", pod6, client6}} {
		t.Run(a.name, func(t *testing.T) {
			l := newLab(t, modes(policy.Strict, nil))
			app, client := port(a.pod, 8080), port(a.client, 40001)
			ln := l.listen(l.pod, app)
			tunnel, err := l.deliver(client, 8080)
			must(t, err)
			server := accept(t, ln)
			ended := make(chan struct{})
			go func() { // an application that has much to say, and a tunnel that passes it on
				defer close(ended)
				for {
					if _, err := server.Write(make([]byte, 4096)); err != nil {
						return
					}
				}
			}()
			go func() {
				for b := make([]byte, 65536); ; {
					if _, err := tunnel.Read(b); err != nil {
						return
					}
				}
			}()
			r := l.wire()
			time.Sleep(50 * time.Millisecond)
			must(t, l.d.Close())
			must(t, Uninstall(l.opts))
			select {
			case <-ended:
			case <-time.After(wait):
				t.Error("the application's end is still open")
			}
			if _, _, data, ok := r.recv(app, client, 0); ok {
				t.Errorf("a packet of the application, with %d bytes, is on the wire", len(data))
			}
			l.serve(l.pod, port(a.pod, 9090))
			l.passes(port(a.pod, 9090))
		})
	}
}

func TestFindNetns(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	inode := func(f *os.File) uint64 {
		var st unix.Stat_t
		must(t, unix.Fstat(int(f.Fd()), &st))
		return st.Ino
	}
	var mounted *os.File
	place := filepath.Join(t.TempDir(), "netns")
	must(t, os.WriteFile(place, nil, 0o600))
	must(t, inFreshNetns(func() error {
		if err := unix.Mount("/proc/thread-self/ns/net", place, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		var err error
		mounted, err = os.Open(place)
		return err
	}))
	t.Cleanup(func() { unix.Unmount(place, unix.MNT_DETACH) })
	inodes := map[uint64]bool{inode(mounted): true, inode(l.pod): true, inode(l.client): true, 1: true}
	must(t, mounted.Close())
	startProber(t, makeCgroup(t, "process"), l.client)
	found := findNetns(inodes)
	for i := range inodes {
		f := found[i]
		if i == 1 && f == nil {
			continue
		}
		if f == nil || inode(f) != i || !isNetns(f) {
			t.Errorf("namespace %d: %v", i, f)
			continue
		}
		f.Close()
	}
}
