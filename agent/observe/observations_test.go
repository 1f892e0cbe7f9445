package observe

import (
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestPlaintextIsCountedOnce(t *testing.T) {
	const cookie = 7
	counts := func(count, last uint64) []Count {
		return []Count{{Cookie: cookie, Port: 80, Peer: legacy, Count: count, LastNanoseconds: last}}
	}
	type step struct {
		counts   []Count
		enrolled bool
		restart  string // with that boot
	}
	enrolled := func(c []Count) step { return step{counts: c, enrolled: true} }
	tests := map[string]struct {
		steps []step
		want  uint64
	}{
		"counts grow":                         {[]step{enrolled(counts(2, 10)), enrolled(counts(2, 10)), enrolled(counts(5, 20))}, 5},
		"the kernel forgets, and begins anew": {[]step{enrolled(counts(5, 10)), enrolled(nil), enrolled(counts(1, 20))}, 6},
		"the same in between two looks":       {[]step{enrolled(counts(5, 10)), enrolled(counts(2, 20))}, 7},
		"once, forgotten, and once more":      {[]step{enrolled(counts(1, 10)), enrolled(counts(1, 20))}, 2},
		"not enrolled yet":                    {[]step{{counts: counts(3, 10)}, enrolled(counts(4, 20))}, 4},
		"never enrolled":                      {[]step{{counts: counts(3, 10)}}, 0},
		"after a restart":                     {[]step{enrolled(counts(2, 10)), {counts: counts(2, 10), enrolled: true, restart: "a"}, enrolled(counts(3, 30))}, 3},
		"after a restart, enrolled later":     {[]step{enrolled(counts(2, 10)), {counts: counts(2, 10), restart: "a"}, enrolled(counts(3, 30))}, 3},
		"meanwhile one more came":             {[]step{enrolled(counts(2, 10)), {counts: counts(3, 20), enrolled: true, restart: "a"}}, 3},
		"after a restart of the machine":      {[]step{enrolled(counts(2, 10)), {counts: counts(2, 10), enrolled: true, restart: "b"}}, 4},
		"gone, and its last ones":             {[]step{enrolled(counts(2, 10)), {counts: counts(4, 20)}, {counts: nil}, {counts: counts(9, 30)}}, 4},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "observed.json")
			r := New(Options{Path: path, Boot: "a"})
			for i, s := range tt.steps {
				if s.restart != "" {
					if err := r.Save(); err != nil {
						t.Fatal(err)
					}
					r = New(Options{Path: path, Boot: s.restart})
				}
				workloads := map[uint64]Workload{}
				if s.enrolled {
					workloads[cookie] = cart
				}
				r.Enrolled(workloads)
				r.Plaintext(s.counts, uint64(100*(i+1)), outside)
			}
			got := uint64(0)
			for _, o := range r.Observations(time.Time{}) {
				got += o.Count
			}
			if got != tt.want {
				t.Errorf("%d connections, want %d", got, tt.want)
			}
		})
	}
}

func TestTimesAreOfTheKernelsClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Options{Window: time.Hour})
		r.Enrolled(map[uint64]Workload{1: cart})
		hour := uint64(time.Hour)
		r.Plaintext([]Count{
			{Cookie: 1, Port: 80, Peer: legacy, Count: 1, LastNanoseconds: 3*hour - hour/2},
			{Cookie: 1, Port: 81, Peer: legacy, Count: 1, LastNanoseconds: hour}, // before the window
		}, 3*hour, outside)
		got := r.Observations(time.Time{})
		if len(got) != 1 || time.Since(got[0].Last) != 30*time.Minute {
			t.Fatalf("observed %+v", got)
		}
		time.Sleep(31 * time.Minute)
		r.Enrolled(map[uint64]Workload{1: cart})
		r.Plaintext(nil, 4*hour, outside)
		if got := r.Observations(time.Time{}); len(got) != 0 || len(r.Watched()) != 1 {
			t.Errorf("after the window: %+v, watched %+v", got, r.Watched())
		}
		r.Enrolled(nil)
		time.Sleep(2 * time.Hour)
		r.Plaintext(nil, 6*hour, outside)
		if w := r.Watched(); len(w) != 0 {
			t.Errorf("gone, and still watched: %+v", w)
		}
	})
}

func TestAPodsSuccessorIsTheSameWorkload(t *testing.T) {
	r := New(Options{})
	next := cart
	next.Pod, next.Labels = "cart-2", map[string]string{"app": "cart", "pod-template-hash": "2"}
	other := cart
	other.Pod, other.Labels = "till-1", map[string]string{"app": "till"}
	client := func(pod string) func(netip.Addr) Peer {
		return func(a netip.Addr) Peer {
			return Peer{Kind: PeerPod, Name: "old/" + pod, ServiceAccount: "default", Address: a}
		}
	}
	r.Enrolled(map[uint64]Workload{1: cart, 3: other})
	r.Plaintext([]Count{{Cookie: 1, Port: 80, Peer: legacy, Count: 2, LastNanoseconds: 1}}, 2, client("report-1"))
	r.Enrolled(map[uint64]Workload{2: next, 3: other})
	r.Plaintext([]Count{
		{Cookie: 2, Port: 80, Peer: legacy.Next(), Count: 3, LastNanoseconds: 3}, {Cookie: 3, Port: 80, Peer: legacy, Count: 1, LastNanoseconds: 3},
	}, 4, client("report-2"))
	got := r.Observations(time.Time{})
	if len(got) != 2 || got[0].Count != 5 || got[0].Workload.Pod != "cart-2" || got[0].Peer.Name != "old/report-2" || got[0].Workload.Labels["pod-template-hash"] != "" {
		t.Errorf("observed %+v", got)
	}
	if got := cart.Labels["pod-template-hash"]; got != "1" {
		t.Error("the caller's labels were changed")
	}
}

func TestOnePortWithManyPeersLeavesRoomForOthers(t *testing.T) {
	r := New(Options{})
	r.Enrolled(map[uint64]Workload{1: cart})
	r.Plaintext([]Count{{Cookie: 1, Port: 443, Peer: legacy, Count: 1, LastNanoseconds: 1}}, 2, outside)
	for i := range 40_000 {
		address := netip.AddrFrom4([4]byte{203, byte(i >> 16), byte(i >> 8), byte(i)})
		r.Flow(Event{Inbound: true, Carried: Plaintext, Source: End{Address: address}, Destination: End{Port: 80}}, &cart, outside(address))
	}
	all := r.Observations(time.Time{})
	if len(all) > maxObservations+slack || !slices.ContainsFunc(all, func(o Observation) bool { return o.Port == 443 }) {
		t.Errorf("%d observations, and none of port 443", len(all))
	}
	if _, dropped := r.Since(); !dropped.IsZero() {
		t.Errorf("dropped %v: the port's other peers tell the same", dropped)
	}
}

func TestWhatHadToMakeRoomIsTold(t *testing.T) {
	r := New(Options{})
	for i := range maxObservations + 2*slack {
		r.Flow(Event{Inbound: true, Carried: Plaintext, Source: End{Address: legacy}, Destination: End{Port: uint16(i + 1)}}, &cart, outside(legacy))
	}
	if _, dropped := r.Since(); dropped.IsZero() {
		t.Error("nobody is told")
	}
}
