package observe

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// knock is a refused connection from anywhere to a port of shop/cart.
func knock(r *Recorder, port uint16) {
	from := netip.AddrFrom4([4]byte{198, 51, byte(port >> 8), byte(port)})
	r.Flow(Event{Inbound: true, Carried: Refused, Source: End{Address: from}, Destination: End{Workload: "shop/cart-1", Port: port}}, &cart, outside(from))
}

func TestAFloodOfRefusalsPushesNothingElseOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Options{})
		r.Enrolled(map[uint64]Workload{1: cart})
		r.Plaintext([]Count{{Cookie: 1, Port: 80, Peer: legacy, Count: 1, LastNanoseconds: 1}}, 2, outside)
		r.Flow(Event{Number: 1, Inbound: true, Carried: MTLS, Source: End{Workload: "web/front-1"}, Destination: End{Workload: "shop/till-1", Port: 80}}, nil, Peer{})
		for range 10 {
			for port := range uint16(2000) {
				knock(r, port+1)
			}
			time.Sleep(time.Second)
		}
		events, _, missed := r.Events(0)
		if most := floodBurst + 10*floodRate + 2; len(events) > most || missed != 0 || len(r.Edges(time.Time{})) > most {
			t.Errorf("%d events, %d edges, want at most %d", len(events), len(r.Edges(time.Time{})), most)
		}
		if _, dropped := r.Since(); !dropped.IsZero() {
			t.Error("plaintext had to make room")
		}
		knock(r, 1)
		var total uint64
		for _, o := range r.Observations(time.Time{}) {
			if o.Carried == Refused {
				total += o.Count
			}
		}
		if total != 10*2000+1 {
			t.Errorf("%d refusals in all, want %d", total, 10*2000+1)
		}
	})
}

func TestPlaintextIsTheLastToMakeRoom(t *testing.T) {
	r := New(Options{})
	now := time.Now()
	plain := r.seen.workload(cart, now)
	r.seen.add(plain, 80, Plaintext, outside(legacy), 1, now.Add(-time.Hour))
	for i := range maxObservations + slack {
		w := r.seen.workload(Workload{Namespace: "shop", ServiceAccount: fmt.Sprint("a", i/100)}, now)
		r.seen.add(w, uint16(i%100), Refused, outside(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})), 1, now)
	}
	found := false
	for _, o := range r.Observations(time.Time{}) {
		found = found || o.Carried == Plaintext
	}
	if _, dropped := r.Since(); !found || !dropped.IsZero() {
		t.Errorf("plaintext kept: %v, dropped %v", found, dropped)
	}
}

func TestFloodsAreBounded(t *testing.T) {
	f, now := floods{}, time.Now()
	admit := func(i int, at time.Time) bool {
		return f.admits(&Event{Time: at, Carried: Failed, Destination: End{Workload: fmt.Sprint(i)}})
	}
	for i := range 2 * maxFloods {
		admit(i, now)
	}
	if len(f) != maxFloods {
		t.Errorf("%d workloads", len(f))
	}
	if !admit(3*maxFloods, now.Add(time.Minute)) || len(f) != 1 {
		t.Errorf("%d workloads when all is calm", len(f))
	}
}
