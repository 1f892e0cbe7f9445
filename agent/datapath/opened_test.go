package datapath

import (
	"cmp"
	"net/netip"
	"slices"
	"testing"

	"github.com/culvert-mesh/culvert/policy"
)

// open returns what is open, in order.
func (l *lab) openPlaintext() []OpenPlaintext {
	l.t.Helper()
	open, err := l.d.OpenPlaintext(l.pod, l.w.Cookie)
	must(l.t, err)
	slices.SortFunc(open, func(a, b OpenPlaintext) int { return cmp.Or(cmp.Compare(a.Port, b.Port), a.Peer.Compare(b.Peer)) })
	return open
}

func TestOpenPlaintextIsFoundHoweverLongItLasts(t *testing.T) {
	l := newLab(t, modes(policy.Permissive, nil))
	must(t, l.d.Detach(l.w.Cookie))
	if watched, err := l.d.Watched(l.w.Cookie); watched || err != nil {
		t.Fatalf("watched %v, %v, before the pod is attached", watched, err)
	}
	l.serve(l.pod, port(pod4, 8080))
	l.serve(l.pod, port(pod6, 8080))
	before := l.passes(port(pod4, 8080)) // nobody has counted it
	must(t, l.d.SetPolicy(l.w.Cookie, modes(policy.Permissive, nil)))
	must(t, l.d.Attach(l.w))
	if watched, err := l.d.Watched(l.w.Cookie); !watched || err != nil {
		t.Fatalf("watched %v, %v", watched, err)
	}
	l.passes(port(pod6, 8080))
	l.passes(port(pod6, 8080))
	once := l.serve(l.pod, port(pod4, 9090))
	l.passes(port(pod4, 9090))
	once.Close() // no listener any more: known by its storage

	// None of these is plaintext from outside.
	_, err := l.dial(l.pod, netip.AddrPort{}, port(pod4, 8080))
	must(t, err)
	l.serve(l.client, port(client4, 7070))
	_, err = l.dial(l.pod, netip.AddrPort{}, port(client4, 7070))
	must(t, err)
	delivered, err := l.deliver(port(client4, 40001), 8080)
	must(t, err)
	greeting(t, delivered)

	want := []OpenPlaintext{{8080, client4, 1}, {8080, client6, 2}, {9090, client4, 1}}
	if got := l.openPlaintext(); !slices.Equal(got, want) {
		t.Errorf("open %v, want %v", got, want)
	}
	must(t, before.Close())
	eventually(t, "the one from before is over", func() bool { return slices.Equal(l.openPlaintext(), want[1:]) })
}

func TestOpenPlaintextOfNoWorkload(t *testing.T) {
	l := newLab(t, modes(policy.Permissive, nil))
	if open, err := l.d.OpenPlaintext(l.pod, l.w.Cookie+1); err == nil {
		t.Errorf("open %v", open)
	}
}
