package datapath

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/culvert-mesh/culvert/bpf"
	"github.com/culvert-mesh/culvert/policy"
)

func (l *lab) fill() map[string]Fill {
	l.t.Helper()
	all, err := l.d.Fill()
	must(l.t, err)
	byMap := map[string]Fill{}
	for _, f := range all {
		byMap[f.Map] = f
	}
	return byMap
}

func TestFillCountsWhatIsInTheMaps(t *testing.T) {
	l := newLab(t, modes(policy.Strict, map[uint16]policy.Mode{80: policy.Permissive, 81: policy.Disable}))
	must(t, l.d.SetCaptured(nil))
	before := l.fill()
	for name, want := range map[string]Fill{
		"workloads": {"workloads", 1, 4096}, "modes": {"modes", 3, 65536}, "captured": {"captured", 0, 65536},
		"deliveries": {"deliveries", 0, 262144}, "plaintext": {"plaintext", 0, 16384},
	} {
		if before[name] != want {
			t.Errorf("%s: %+v, want %+v", name, before[name], want)
		}
	}
	// More than one batch.
	const n = 3*countBatch + 7
	var prefixes []netip.Prefix
	for i := range n {
		prefixes = append(prefixes, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 32))
	}
	must(t, l.d.SetCaptured(prefixes))
	fillPlaintext(t, l.d, n)
	after := l.fill()
	if got := after["captured"].Entries; got != n {
		t.Errorf("captured: %d entries, want %d", got, n)
	}
	if got := after["plaintext"].Entries; got != n {
		t.Errorf("plaintext: %d entries, want %d", got, n)
	}
}

// fillPlaintext does what n peers would that connect.
func fillPlaintext(t testing.TB, d *Datapath, n int) {
	t.Helper()
	for i := range n {
		peer := bpf.Words(netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}))
		k := bpf.MapsPlaintextKey{Cookie: 1, Port: 80, Peer: peer}
		must(t, d.maps.Plaintext.Update(k, bpf.MapsPlaintextValue{Count: 1}, ebpf.UpdateAny))
	}
}

func BenchmarkFill(b *testing.B) {
	l := newLab(b, modes(policy.Strict, nil))
	fillPlaintext(b, l.d, 16384)
	for b.Loop() {
		if _, err := l.d.Fill(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPlaintext(b *testing.B) {
	l := newLab(b, modes(policy.Strict, nil))
	fillPlaintext(b, l.d, 16384)
	for b.Loop() {
		if _, err := l.d.Plaintext(); err != nil {
			b.Fatal(err)
		}
	}
}
