package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/bpf"
	"github.com/culvert-mesh/culvert/policy"
)

func prefixes(all ...string) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(all))
	for _, s := range all {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a := netip.MustParseAddr(s)
			p = netip.PrefixFrom(a, a.BitLen())
		}
		out = append(out, p)
	}
	return out
}

func singles(from string, n int) []netip.Prefix {
	a, all := netip.MustParseAddr(from), make([]netip.Prefix, 0, n)
	for range n {
		all = append(all, netip.PrefixFrom(a, a.BitLen()))
		a = a.Next()
	}
	return all
}

// smallCaptured is a map of the kernel with room for few.
func smallCaptured(t *testing.T, room uint32) *captured {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.LPMTrie, KeySize: 20, ValueSize: 4, MaxEntries: room, Flags: unix.BPF_F_NO_PREALLOC,
	})
	must(t, err)
	t.Cleanup(func() { m.Close() })
	c, err := readCaptured(m)
	must(t, err)
	return c
}

// contents asks the kernel, and compares with what is thought to be there.
func (c *captured) contents(t *testing.T) []string {
	t.Helper()
	read, err := readCaptured(c.kernel)
	must(t, err)
	var all []string
	for k := range read.held {
		all = append(all, strings.TrimSuffix(strings.TrimSuffix(prefixName(k).String(), "/32"), "/128"))
		if !c.held.has(k) {
			t.Errorf("%s is in the map unnoticed", prefixName(k))
		}
	}
	if len(c.held) != len(read.held) {
		t.Errorf("%d are thought to be in the map, and %d are", len(c.held), len(read.held))
	}
	slices.Sort(all)
	return all
}

func (c *captured) setAll(t *testing.T, all ...string) error {
	t.Helper()
	keys, err := prefixKeys(prefixes(all...))
	must(t, err)
	c.set(keys)
	return c.settle()
}

func TestCapturedInAMapOfFour(t *testing.T) {
	for _, c := range []struct {
		name          string
		before, after []string
		want          []string // nil: not to be foretold
		present       []string
		lost          int
	}{
		{name: "replaced whole", before: []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"},
			after: []string{"10.1.0.0/16", "fd00::/8", "10.0.0.4", "10.0.0.5"},
			want:  []string{"10.0.0.4", "10.0.0.5", "10.1.0.0/16", "fd00::/8"}},
		{name: "fewer", before: []string{"10.0.0.1", "10.0.0.2"}, after: []string{"10.0.0.2"}, want: []string{"10.0.0.2"}},
		{name: "nothing", before: []string{"10.0.0.1", "10.0.0.2"}, want: []string{}},
		{name: "too many addresses", before: []string{"10.0.0.1"},
			after:   []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.1.0.0/16"},
			present: []string{"10.0.0.1", "10.1.0.0/16"}, lost: 3},
		{name: "a range takes the place of a wanted address", before: []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"},
			after:   []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.1.0.0/16"},
			present: []string{"10.1.0.0/16"}, lost: 1},
		{name: "too many ranges: the widest stay", before: []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"},
			after: []string{"10.5.0.0/20", "10.0.0.1", "10.4.0.0/16", "10.3.0.0/15", "10.0.0.0/24", "fd00::/8"},
			want:  []string{"10.2.0.0/15", "10.4.0.0/16", "10.5.0.0/20", "fd00::/8"}, lost: 2},
		{name: "the same range of both families", before: []string{"0.0.0.0/0"}, after: []string{"0.0.0.0/0", "::/0"},
			want: []string{"0.0.0.0/0", "::/0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := smallCaptured(t, 4)
			must(t, m.setAll(t, c.before...))
			err := m.setAll(t, c.after...)
			if errors.Is(err, ErrCapturedFull) != (c.lost > 0) || err != nil && !strings.HasPrefix(err.Error(), fmt.Sprintf("%d of %d ", c.lost, len(c.after))) {
				t.Errorf("error %v, want %d of %d without room", err, c.lost, len(c.after))
			}
			got := m.contents(t)
			if c.want != nil && !slices.Equal(got, c.want) {
				t.Errorf("captured %s, want %s", got, c.want)
			}
			for _, p := range c.present {
				if !slices.Contains(got, p) {
					t.Errorf("%s fell out of %s", p, got)
				}
			}
			if len(got) != len(c.after)-c.lost {
				t.Errorf("captured %s, which is not %d", got, len(c.after)-c.lost)
			}
		})
	}
}

func TestCapturedFindsRoomLater(t *testing.T) {
	m := smallCaptured(t, 2)
	if err := m.setAll(t, "10.0.0.1", "10.0.0.2", "10.0.0.3"); !errors.Is(err, ErrCapturedFull) {
		t.Errorf("three in a map of two: %v", err)
	}
	for k := range m.held {
		m.remove(k)
		break
	}
	must(t, m.settle())
	if got := m.contents(t); len(got) != 2 || len(m.missing) != 0 {
		t.Errorf("captured %s, and %d have no room", got, len(m.missing))
	}
}

// What gives up its place first: what nobody wants and no coming range holds.
func TestCapturedVictims(t *testing.T) {
	m := smallCaptured(t, 3)
	must(t, m.setAll(t, "10.1.0.1", "10.2.0.1", "10.3.0.0/24"))
	m.set(nil)
	coming, err := prefixKeys(prefixes("10.2.0.0/16"))
	must(t, err)
	for _, want := range []string{"10.1.0.1", "10.3.0.0/24", "10.2.0.1"} {
		k, err := prefixKeys(prefixes(want))
		must(t, err)
		if ok, err := m.dropOne(coming); !ok || err != nil {
			t.Fatalf("dropOne: %v, %v", ok, err)
		}
		if m.held.has(k[0]) {
			t.Errorf("%s is still there, of %v", want, m.contents(t))
		}
	}
	if ok, err := m.dropOne(coming); ok || err != nil {
		t.Errorf("dropOne of nothing: %v, %v", ok, err)
	}
}

func (l *lab) isCaptured(a string) bool {
	var v uint32
	return l.d.maps.Captured.Lookup(prefixKey(prefixes(a)[0]), &v) == nil
}

func TestCapturedAcrossARestart(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	must(t, l.d.SetCaptured(prefixes("10.77.0.0/16", "192.0.2.1", "192.0.2.2")))
	must(t, l.d.Close())
	l.open()
	if !l.isCaptured("192.0.2.1") {
		t.Error("the successor's start loses what was captured")
	}
	must(t, l.d.UpdateCaptured(prefixes("192.0.2.3"), prefixes("192.0.2.9")))
	must(t, l.d.SetCaptured(prefixes("10.77.0.0/16", "192.0.2.2", "192.0.2.4")))
	for a, want := range map[string]bool{
		"10.77.1.1": true, "192.0.2.1": false, "192.0.2.2": true, "192.0.2.3": false, "192.0.2.4": true,
	} {
		if l.isCaptured(a) != want {
			t.Errorf("%s is captured: %v", a, !want)
		}
	}
	must(t, l.d.UpdateCaptured(prefixes("192.0.2.5", "192.0.2.6"), prefixes("192.0.2.6", "192.0.2.4")))
	for a, want := range map[string]bool{"192.0.2.2": true, "192.0.2.4": false, "192.0.2.5": true, "192.0.2.6": true} {
		if l.isCaptured(a) != want {
			t.Errorf("after the update %s is captured: %v", a, !want)
		}
	}
	before := l.d.captured.contents(t)
	for _, bad := range [][]netip.Prefix{{{}}, append(prefixes("192.0.2.7"), netip.Prefix{})} {
		if l.d.SetCaptured(bad) == nil || l.d.UpdateCaptured(bad, nil) == nil || l.d.UpdateCaptured(nil, bad) == nil {
			t.Error("a prefix that is none is taken")
		}
	}
	if after := l.d.captured.contents(t); !slices.Equal(before, after) {
		t.Errorf("a refused call changes %s to %s", before, after)
	}
}

// What both the old and the new set capture is captured at every moment between.
func TestCapturedAllTheTime(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	wide, narrow := prefixes("172.16.0.0/12"), singles("172.16.0.0", 300)
	must(t, l.d.SetCaptured(wide))
	stop, missed := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for i := 0; ; i++ {
			select {
			case <-stop:
				missed <- n
				return
			default:
			}
			var v uint32
			if errors.Is(l.d.maps.Captured.Lookup(prefixKey(narrow[i%len(narrow)]), &v), ebpf.ErrKeyNotExist) {
				n++
			}
		}
	}()
	for range 20 {
		must(t, l.d.SetCaptured(narrow))
		must(t, l.d.UpdateCaptured(wide, narrow))
	}
	close(stop)
	if n := <-missed; n != 0 {
		t.Errorf("%d times something was not captured", n)
	}
}

func TestCapturedMany(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	all := singles("172.16.0.1", 50000)
	begin := time.Now()
	must(t, l.d.SetCaptured(all))
	first := time.Since(begin)
	begin = time.Now()
	must(t, l.d.SetCaptured(all))
	again := time.Since(begin)
	best := time.Hour
	one := prefixes("192.0.2.1")
	for range 50 {
		begin = time.Now()
		must(t, l.d.UpdateCaptured(one, nil))
		must(t, l.d.UpdateCaptured(nil, one))
		best = min(best, time.Since(begin)/2)
	}
	t.Logf("50,000 at first: %s, unchanged: %s, one of them: %s", first, again, best)
	if best > time.Millisecond {
		t.Errorf("a change of one among 50,000 takes %s", best)
	}
	begin = time.Now()
	_, err := readCaptured(l.d.maps.Captured)
	must(t, err)
	t.Logf("reading them at the start: %s", time.Since(begin))

	all = singles("172.16.0.1", 70000)
	for range 3 {
		must(t, l.d.SetCaptured(nil))
		err := l.d.SetCaptured(append(all, prefixes("10.244.0.0/16")...))
		want := fmt.Sprintf("%d of 70001 ", 70001-l.d.maps.Captured.MaxEntries())
		if !errors.Is(err, ErrCapturedFull) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("70,001 in the map: %v", err)
		}
		must(t, ignoreFull(l.d.UpdateCaptured(prefixes("10.96.0.0/12"), nil)))
		if !l.isCaptured("10.244.7.7") || !l.isCaptured("10.96.0.1") {
			t.Error("a range fell out because of single addresses")
		}
	}
	begin = time.Now()
	err = l.d.UpdateCaptured(one, nil)
	t.Logf("one more in a full map: %s: %v", time.Since(begin), err)
	must(t, l.d.UpdateCaptured(nil, append(all[:10000:10000], one...)))
	if got := len(l.d.captured.held); got != 60002 {
		t.Errorf("%d are captured when there is room again, want 60002", got)
	}
	l.d.captured.contents(t)
}

func ignoreFull(err error) error {
	if errors.Is(err, ErrCapturedFull) {
		return nil
	}
	return err
}

func TestPrefixNames(t *testing.T) {
	for _, p := range prefixes("10.0.0.0/8", "0.0.0.0/0", "10.1.2.3", "fd00::/8", "fd00::1", "::/0") {
		if got := prefixName(prefixKey(p)); got != p {
			t.Errorf("%s is named %s", p, got)
		}
	}
	if got := prefixName(bpf.MapsPrefixKey{Bits: 96, Ip: bpf.Words(netip.MustParseAddr("0.0.0.0"))}); got.Bits() != 0 {
		t.Errorf("all of IPv4 is named %s", got)
	}
}
