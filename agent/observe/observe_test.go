package observe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var (
	cart   = Workload{Namespace: "shop", ServiceAccount: "cart", Pod: "cart-1", Labels: map[string]string{"app": "cart", "pod-template-hash": "1"}}
	legacy = netip.MustParseAddr("10.0.0.9")
)

func outside(a netip.Addr) Peer { return Peer{Kind: PeerOutside, Address: a} }

func TestEventsAreNumberedAndBounded(t *testing.T) {
	r := New(Options{})
	if events, last, missed := r.Events(0); len(events) != 0 || missed != 0 || last == 0 {
		t.Fatalf("at the start: %d events, last %d, missed %d", len(events), last, missed)
	}
	_, begin, _ := r.Events(0)
	for i := range ringSize + 10 {
		r.Flow(Event{Number: uint64(i + 1), Carried: MTLS}, nil, Peer{})
	}
	tests := map[string]struct {
		after  uint64
		events int
		missed uint64
	}{
		"from the start":                       {0, ringSize, 0},
		"one that followed, and was too slow":  {begin + 1, ringSize, 9},
		"one that follows":                     {begin + ringSize, 10, 0},
		"all is known":                         {begin + ringSize + 10, 0, 0},
		"of an agent whose clock was ahead":    {begin + 1<<40, ringSize, 0},
		"of an agent before this one's start":  {begin - 1000, ringSize, 0},
		"the latest is known but for one more": {begin + ringSize + 9, 1, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			events, last, missed := r.Events(tt.after)
			if len(events) != tt.events || missed != tt.missed || last != begin+ringSize+10 {
				t.Errorf("%d events, missed %d, last %d", len(events), missed, last-begin)
			}
			for i := 1; i < len(events); i++ {
				if events[i].Sequence != events[i-1].Sequence+1 {
					t.Fatalf("%d after %d", events[i].Sequence, events[i-1].Sequence)
				}
			}
		})
	}
}

func TestFollowersWaitAndAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Options{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var waiting sync.WaitGroup
		for range maxFollowers {
			waiting.Go(func() {
				events, _, _, err := r.Wait(ctx, 0)
				if err != nil || len(events) != 1 {
					t.Errorf("%d events, %v", len(events), err)
				}
			})
		}
		synctest.Wait()
		if _, _, _, err := r.Wait(ctx, 0); !errors.Is(err, ErrTooManyFollowers) {
			t.Errorf("one more: %v", err)
		}
		r.Flow(Event{Carried: Refused}, nil, Peer{})
		waiting.Wait()
		_, last, _ := r.Events(0)
		begin := time.Now()
		events, now, _, err := r.Wait(ctx, last)
		if err != nil || len(events) != 0 || now != last || time.Since(begin) != time.Minute {
			t.Errorf("nothing comes: %d events, last %d, %v", len(events), now, err)
		}
	})
}

func TestAConnectionCountsOnce(t *testing.T) {
	from := End{Address: legacy, Port: 4000, Identity: "spiffe://td/ns/web/sa/front"}
	to := End{Address: netip.MustParseAddr("10.0.0.1"), Port: 8080, Workload: "shop/cart-1"}
	event := func(number uint64, how Carried, open bool) Event {
		return Event{Number: number, Inbound: true, Carried: how, Open: open, Source: from, Destination: to, Sent: 10}
	}
	peer := Peer{Kind: PeerPod, Name: "web/front-1", Identity: from.Identity}
	tests := map[string]struct {
		events []Event
		want   map[Carried]uint64
		sent   uint64
	}{
		"told when it opens and when it ends": {[]Event{event(1, MTLS, true), event(1, MTLS, false)}, map[Carried]uint64{MTLS: 1}, 10},
		"told at its end alone":               {[]Event{event(1, MTLS, false), event(2, MTLS, false)}, map[Carried]uint64{MTLS: 2}, 20},
		"opened, and failed later":            {[]Event{event(1, MTLS, true), event(1, Failed, false)}, map[Carried]uint64{MTLS: 1}, 10},
		"refused":                             {[]Event{event(1, Refused, false)}, map[Carried]uint64{Refused: 1}, 10},
		"refused by the kernel, three at once": {[]Event{{Inbound: true, Carried: Refused, Source: from, Destination: to, Count: 3}},
			map[Carried]uint64{Refused: 3}, 0},
		"still open": {[]Event{event(1, SameNode, true)}, map[Carried]uint64{SameNode: 1}, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := New(Options{})
			for _, e := range tt.events {
				r.Flow(e, &cart, peer)
			}
			got := map[Carried]uint64{}
			for _, o := range r.Observations(time.Time{}) {
				got[o.Carried] += o.Count
			}
			edges := r.Edges(time.Time{})
			if fmt.Sprint(got) != fmt.Sprint(tt.want) || len(edges) != 1 || edges[0].Sent != tt.sent {
				t.Errorf("observed %v, want %v; edges %+v", got, tt.want, edges)
			}
			for how, n := range tt.want {
				if edges[0].Carried[how].Count != n {
					t.Errorf("edge %+v, want %d %s", edges[0], n, how)
				}
			}
		})
	}
}

func TestConnectionsThatStayOpenAreBounded(t *testing.T) {
	k := told{open: map[flowKey]struct{}{}}
	for i := range 10 * maxTold {
		k.fresh(&Event{Number: uint64(i + 1), Open: true})
	}
	if len(k.open) > 2*maxTold || len(k.order) > 2*maxTold {
		t.Errorf("%d open, %d in order", len(k.open), len(k.order))
	}
	if k.fresh(&Event{Number: 10 * maxTold}) {
		t.Error("the latest is not known any more")
	}
}

func TestEdgesAreBounded(t *testing.T) {
	r := New(Options{})
	for i := range maxEdges + 100 {
		address := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		r.Flow(Event{Carried: Plaintext, Source: End{Address: address}, Destination: End{Workload: "shop/cart-1", Port: 80}}, nil, Peer{})
	}
	edges := r.Edges(time.Time{})
	if len(edges) != maxEdges || len(r.edges.by) != maxEdges || edges[0].Source != "10.0.64.99" {
		t.Errorf("%d edges, the latest from %s", len(edges), edges[0].Source)
	}
}

func TestAllAtOnce(t *testing.T) {
	r := New(Options{Path: filepath.Join(t.TempDir(), "observed.json")})
	var all sync.WaitGroup
	for g := range 4 {
		all.Go(func() {
			for i := range 200 {
				r.Flow(Event{Number: uint64(i + 1), Inbound: true, Open: i%2 == 0, Carried: MTLS, Destination: End{Port: uint16(g)}}, &cart, outside(legacy))
				r.Enrolled(map[uint64]Workload{uint64(g): cart})
				r.Plaintext([]Count{{Cookie: uint64(g), Port: 80, Peer: legacy, Count: uint64(i), LastNanoseconds: uint64(i)}}, uint64(i), outside)
				r.Events(0)
				if i%50 == 0 {
					if err := r.Save(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	all.Wait()
	r.Edges(time.Time{})
	r.Watched()
}
