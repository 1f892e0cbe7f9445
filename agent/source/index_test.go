package source

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/policy"
)

// world is a small universe of objects, of which a random walk sets and deletes some.
type world struct {
	random   *rand.Rand
	pods     map[string]*Pod
	services map[string]*Service
	index    *Index
}

func (w *world) address(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 0, 0, byte(w.random.IntN(n))})
}

func (w *world) step() {
	name := fmt.Sprint("o", w.random.IntN(12))
	switch w.random.IntN(4) {
	case 0:
		delete(w.pods, name)
		w.index.DeletePod("n", name)
	case 1:
		delete(w.services, name)
		w.index.DeleteService("n", name)
	case 2:
		p := &Pod{Namespace: "n", Name: name, UID: fmt.Sprint(w.random.IntN(3)), Node: fmt.Sprint("node", w.random.IntN(2)),
			Created: time.Unix(w.random.Int64N(3), 0), HostNetwork: w.random.IntN(5) == 0,
			Addresses: []netip.Addr{w.address(8), w.address(8)}}
		w.pods[name] = p
		w.index.SetPod(p)
	case 3:
		s := &Service{Namespace: "n", Name: name, Ports: []ServicePort{{Port: 80, Endpoints: []netip.AddrPort{
			netip.AddrPortFrom(w.address(8), 8080)}}}}
		if w.random.IntN(2) == 0 {
			s.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, byte(w.random.IntN(4))})}
		}
		if w.random.IntN(3) == 0 {
			s.External = []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(w.random.IntN(2))})}
		}
		w.services[name] = s
		w.index.SetService(s)
	}
}

func (w *world) universe() []netip.Addr {
	var all []netip.Addr
	for i := range 8 {
		all = append(all, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}),
			netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
	}
	return all
}

// words is all that a snapshot says, address by address.
func words(s *Snapshot, universe []netip.Addr) map[netip.Addr]string {
	said := map[netip.Addr]string{}
	for _, a := range universe {
		text := fmt.Sprint("known:", s.Known(a))
		if p := s.PodByAddress(a); p != nil {
			text += fmt.Sprint(" pod:", *p)
		}
		if service := s.ServiceByAddress(netip.AddrPortFrom(a, 80)); service != nil {
			text += fmt.Sprint(" service:", *service)
		}
		if service, port := s.HeadlessService("n", netip.AddrPortFrom(a, 8080)); service != nil {
			text += fmt.Sprint(" headless:", *service, port)
		}
		said[a] = text
	}
	return said
}

// TestIndexEqualsOneMadeAnew walks at random, and after each step compares with an index that was given only what is
// left; with what the earlier snapshot said before; and with the changes that the new one names.
func TestIndexEqualsOneMadeAnew(t *testing.T) {
	w := &world{random: rand.New(rand.NewPCG(3, 4)), pods: map[string]*Pod{}, services: map[string]*Service{}, index: NewIndex("node0")}
	universe := w.universe()
	last := w.index.Snapshot()
	for step := range 5000 {
		before := words(last, universe)
		for range 1 + w.random.IntN(3) {
			w.step()
		}
		next := w.index.Snapshot()
		if !maps.Equal(before, words(last, universe)) {
			t.Fatalf("step %d: a snapshot changed after it was taken", step)
		}
		if next == nil {
			continue
		}
		fresh := NewIndex("node0")
		for _, p := range w.pods {
			fresh.SetPod(p)
		}
		for _, s := range w.services {
			fresh.SetService(s)
		}
		now, want := words(next, universe), words(fresh.Snapshot(), universe)
		for _, a := range universe {
			if now[a] != want[a] {
				t.Fatalf("step %d: %s is %q, want %q", step, a, now[a], want[a])
			}
			if now[a] != before[a] && !next.Changes.Address(a) {
				t.Fatalf("step %d: %s became %q from %q, which the changes do not name", step, a, now[a], before[a])
			}
		}
		local := map[string]*Pod{}
		for _, p := range w.pods {
			if p.Node == "node0" {
				local[p.Ref()] = p
			}
		}
		if got := maps.Collect(next.Local()); !maps.Equal(got, local) {
			t.Fatalf("step %d: local pods %v, want %v", step, got, local)
		}
		last = next
	}
}

func TestUnchangedObjectsGiveNoSnapshot(t *testing.T) {
	x := NewIndex("node")
	set := func() {
		x.SetNamespace(&Namespace{Name: "n", Labels: map[string]string{"a": "b"}})
		x.SetPod(&Pod{Namespace: "n", Name: "p", Node: "node", Labels: map[string]string{"a": "b"}, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}})
		x.SetService(&Service{Namespace: "n", Name: "s", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.1")}})
		x.SetRanges([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")})
	}
	set()
	if s := x.Snapshot(); s == nil || !s.Changes.All {
		t.Fatal("the first snapshot does not say that all is new")
	}
	set()
	if s := x.Snapshot(); s != nil {
		t.Fatalf("nothing changed, and yet %+v", s.Changes)
	}
}

func TestChangesNameWhatChanged(t *testing.T) {
	x := NewIndex("node")
	x.SetNamespace(&Namespace{Name: "n"})
	x.Snapshot()
	x.SetNamespace(&Namespace{Name: "n", Labels: map[string]string{"a": "b"}})
	x.SetPolicies("m", []policy.PeerAuthentication{{Namespace: "m", Name: "p"}})
	c := x.Snapshot().Changes
	if c.All || c.Local || !c.Namespace("n") || !c.Namespace("m") || c.Namespace("o") {
		t.Fatalf("%+v", c)
	}
	if got := slices.Collect(maps.Keys(c.Policies)); !slices.Equal(got, []string{"m"}) {
		t.Fatalf("policies of %v", got)
	}
}

func TestChangesKnowWhenTheFirstOfThemCame(t *testing.T) {
	x := NewIndex("node")
	x.Snapshot()
	first, second := time.Unix(100, 0), time.Unix(200, 0)
	x.Arrived(first)
	x.SetNamespace(&Namespace{Name: "n"})
	x.Arrived(second)
	x.Arrived(time.Time{})
	x.SetNamespace(&Namespace{Name: "m"})
	one := x.Snapshot()
	if got := one.Changes.Arrived; got != first {
		t.Fatalf("the first came at %v, want %v", got, first)
	}
	x.Arrived(first)
	x.SetNamespace(&Namespace{Name: "m"})
	if s := x.Snapshot(); s != nil {
		t.Fatalf("nothing changed, and yet %+v", s.Changes)
	}
	x.Arrived(second)
	x.SetNamespace(&Namespace{Name: "o"})
	two := x.Snapshot()
	if got := two.Changes.Arrived; got != second {
		t.Fatalf("the next came at %v, want %v: what came without a change counts", got, second)
	}
	if got := two.Since(one).Changes.Arrived; got != first {
		t.Fatalf("with the one that was skipped the first came at %v, want %v", got, first)
	}
}
