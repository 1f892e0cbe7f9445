package observe

import (
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// onNodes is what Elsewhere is told of cart.
func onNodes(names ...string) map[string]map[string]bool {
	nodes := map[string]bool{}
	for _, n := range names {
		nodes[n] = true
	}
	return map[string]map[string]bool{cart.Key(): nodes}
}

func watchedCart(t *testing.T, r *Recorder) Watched {
	t.Helper()
	all := r.Watched()
	if len(all) != 1 {
		t.Fatalf("watched %+v", all)
	}
	return all[0]
}

func restarted(t *testing.T, r *Recorder) *Recorder {
	t.Helper()
	if err := r.Save(); err != nil {
		t.Fatal(err)
	}
	return New(Options{Path: r.path, Boot: r.boot, Window: r.window})
}

func TestAPodThatRanUnwatchedIsRemembered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "observed.json")
	synctest.Test(t, func(t *testing.T) {
		r := New(Options{Path: path})
		begin := time.Now()
		r.Arrived(1, cart, true)
		if w := watchedCart(t, r); !w.Blind.IsZero() || !w.Since.Equal(begin) {
			t.Errorf("watched from its start: %+v", w)
		}
		time.Sleep(time.Hour)
		r.Arrived(2, cart, false)
		time.Sleep(time.Hour)
		r.Arrived(3, cart, true)
		r = restarted(t, r)
		if w := watchedCart(t, r); !w.Blind.Equal(begin.Add(time.Hour)) || !w.Since.Equal(begin) {
			t.Errorf("one of three ran unwatched: %+v, begin %v", w, begin)
		}
	})
}

func TestNodesThatPodsLeftAreRemembered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "observed.json")
	synctest.Test(t, func(t *testing.T) {
		r := New(Options{Path: path, Window: 24 * time.Hour})
		nodes := func(want ...string) {
			t.Helper()
			w := watchedCart(t, r)
			if got := slices.Sorted(maps.Keys(w.Nodes(time.Now().Add(-24 * time.Hour)))); !slices.Equal(got, want) {
				t.Errorf("nodes %v, want %v", got, want)
			}
		}
		r.Enrolled(map[uint64]Workload{1: cart})
		nodes()
		r.Elsewhere(onNodes("n2", "n3"))
		nodes("n2", "n3")
		time.Sleep(time.Hour)
		r.Elsewhere(onNodes("n3", "n4"))
		nodes("n2", "n3", "n4")
		r = restarted(t, r) // n4 goes meanwhile
		r.Enrolled(map[uint64]Workload{1: cart})
		r.Elsewhere(onNodes("n3"))
		nodes("n2", "n3", "n4")
		time.Sleep(25 * time.Hour)
		r.Enrolled(map[uint64]Workload{1: cart})
		r.Elsewhere(onNodes("n3"))
		nodes("n3")
	})
}

func TestNodesThatPodsLeftAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Options{})
		r.Enrolled(map[uint64]Workload{1: cart})
		for i := range 3 * maxLeft {
			r.Elsewhere(onNodes(string(rune('a' + i))))
			time.Sleep(time.Second)
		}
		r.Elsewhere(nil)
		w := watchedCart(t, r)
		if len(w.Left) != maxLeft || w.Left[string(rune('a'+3*maxLeft-1))].IsZero() {
			t.Errorf("%d nodes: %v", len(w.Left), w.Left)
		}
	})
}

func TestConnectionsOfAPodThatLeavesAreCounted(t *testing.T) {
	r := New(Options{})
	counts := []Count{{Cookie: 1, Port: 80, Peer: legacy, Count: 3, LastNanoseconds: 50}, {Cookie: 2, Port: 80, Peer: legacy, Count: 9, LastNanoseconds: 50}}
	r.Arrived(1, cart, true) // and gone before anybody looked
	r.Leaving(1, counts, 100, outside)
	r.Enrolled(nil)
	// A look that began before it left must not count them once more.
	r.Plaintext([]Count{{Cookie: 1, Port: 80, Peer: legacy, Count: 2, LastNanoseconds: 40}}, 90, outside)
	r.Plaintext(nil, 200, outside)
	r.Leaving(7, counts, 100, outside) // of nobody
	got := r.Observations(time.Time{})
	if len(got) != 1 || got[0].Count != 3 {
		t.Errorf("observed %+v", got)
	}
}

func TestPlaintextToAPodThatLeftWhileTheAgentWasAway(t *testing.T) {
	r := New(Options{Path: filepath.Join(t.TempDir(), "observed.json"), Boot: "a"})
	r.Arrived(1, cart, true)
	r = restarted(t, r)
	r.Leaving(1, []Count{{Cookie: 1, Port: 80, Peer: legacy, Count: 3, LastNanoseconds: 50}}, 100, outside)
	if got := r.Observations(time.Time{}); len(got) != 1 || got[0].Count != 3 {
		t.Errorf("observed %+v", got)
	}
	if _, dropped := r.Since(); !dropped.IsZero() {
		t.Error("something is said to be missing")
	}
	r.Leaving(2, []Count{{Cookie: 2, Port: 80, Peer: legacy, Count: 1, LastNanoseconds: 50}}, 100, outside)
	if _, dropped := r.Since(); dropped.IsZero() {
		t.Error("nobody ever named the other pod, and nothing is said to be missing")
	}
}

func TestAPodOutsideTheMeshOfAKnownWorkloadIsAGap(t *testing.T) {
	r := New(Options{})
	r.Arrived(1, cart, true)
	r.Unwatched(Workload{Namespace: "shop", ServiceAccount: "other"})
	if w := watchedCart(t, r); !w.Blind.IsZero() {
		t.Errorf("another workload's pod: %+v", w)
	}
	r.Unwatched(cart)
	if w := watchedCart(t, r); w.Blind.IsZero() {
		t.Errorf("%+v", w)
	}
}

func TestPlaintextIsTheLastToBeLeftOutOfTheFile(t *testing.T) {
	r := New(Options{Path: filepath.Join(t.TempDir(), "observed.json")})
	now := time.Now()
	w := r.seen.workload(cart, now)
	r.seen.add(w, 80, Plaintext, outside(legacy), 1, now.Add(-time.Hour))
	s := r.state()
	for range 40000 {
		s.Seen = append(s.Seen, stateSeen{Carried: MTLS, Peer: Peer{Identity: "spiffe://cluster.local/ns/a-namespace/sa/an-account-with-a-name"}, Last: now.UnixMilli()})
	}
	if _, err := s.encode(); err != nil {
		t.Fatal(err)
	}
	if len(s.Seen) >= 40000 || s.Seen[0].Carried != Plaintext || !s.Dropped.IsZero() {
		t.Errorf("%d are left, the first %+v, dropped %v", len(s.Seen), s.Seen[0], s.Dropped)
	}
}

func TestWhatIsStillOpenWasSeenLately(t *testing.T) {
	path := filepath.Join(t.TempDir(), "observed.json")
	synctest.Test(t, func(t *testing.T) {
		hour := uint64(time.Hour)
		r := New(Options{Path: path, Window: 24 * time.Hour})
		r.Enrolled(map[uint64]Workload{1: cart})
		begin := time.Now()
		r.Plaintext([]Count{{Cookie: 1, Port: 80, Peer: legacy, Count: 2, LastNanoseconds: hour}}, hour, outside)
		for range 30 {
			time.Sleep(time.Hour)
			r.Opened(1, []Open{{Port: 80, Peer: legacy, Count: 1}, {Port: 81, Peer: netip.MustParseAddr("192.0.2.1"), Count: 4}}, outside)
		}
		r.Opened(9, []Open{{Port: 82, Peer: legacy, Count: 1}}, outside) // of nobody
		r = restarted(t, r)
		got := r.Observations(time.Now().Add(-time.Minute))
		if len(got) != 2 {
			t.Fatalf("observed %+v", got)
		}
		if o := got[0]; o.Port != 80 || o.Count != 2 || !o.First.Equal(begin) || !o.Last.Equal(begin.Add(30*time.Hour)) {
			t.Errorf("counted when it opened: %+v", o)
		}
		if o := got[1]; o.Port != 81 || o.Count != 4 || o.Carried != Plaintext {
			t.Errorf("open from before: %+v", o)
		}
	})
}

func TestASameNodeConnectionIsSeenAtBothEnds(t *testing.T) {
	r := New(Options{})
	front := Peer{Kind: PeerPod, Name: "web/front-1", Identity: "spiffe://td/ns/web/sa/front"}
	e := Event{Number: 5, Carried: SameNode, Open: true, Source: End{Workload: "web/front-1"}, Destination: End{Workload: "shop/cart-1", Port: 8080}}
	r.Flow(e, &cart, front)
	e.Open, e.Sent = false, 10
	r.Flow(e, &cart, front)
	var inbound, outbound int
	for _, x := range r.Edges(time.Time{}) {
		if x.Carried[SameNode].Count != 1 || x.Sent != 10 {
			t.Errorf("edge %+v", x)
		}
		if x.Inbound {
			inbound++
		} else {
			outbound++
		}
	}
	got := r.Observations(time.Time{})
	if inbound != 1 || outbound != 1 || len(got) != 1 || got[0].Count != 1 || got[0].Peer.Identity != front.Identity {
		t.Errorf("%d and %d edges, observed %+v", inbound, outbound, got)
	}
	if events, _, _ := r.Events(0); len(events) != 2 {
		t.Errorf("%d events, want the two that were told", len(events))
	}
}

func TestLabelsThatEndWithAPod(t *testing.T) {
	got := Passing(map[string]string{"app": "db", "statefulset.kubernetes.io/pod-name": "db-0", "controller-uid": "x"})
	if !slices.Equal(got, []string{"controller-uid", "statefulset.kubernetes.io/pod-name"}) {
		t.Errorf("passing %v", got)
	}
}
