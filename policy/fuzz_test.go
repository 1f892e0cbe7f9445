package policy

import (
	"math/rand/v2"
	"reflect"
	"testing"
	"time"
)

// dice deals small choices from a fuzzer's bytes, zeros when they run out.
type dice struct{ data []byte }

func (d *dice) roll(n int) int {
	if len(d.data) == 0 {
		return 0
	}
	b := d.data[0]
	d.data = d.data[1:]
	return int(b) % n
}

func (d *dice) pick(from ...string) string { return from[d.roll(len(from))] }

func (d *dice) labels() map[string]string {
	labels := make(map[string]string)
	for range d.roll(4) {
		labels[d.pick("app", "tier", "", "*")] = d.pick("a", "b", "", "*")
	}
	return labels
}

func (d *dice) created() time.Time {
	if d.roll(4) == 0 {
		return time.Time{}
	}
	return time.Unix(int64(d.roll(3))-1, int64(d.roll(2))*999_999_999)
}

func (d *dice) workload() Workload {
	return Workload{Namespace: d.pick("default", "test", "istio-system", ""), Name: "pod", Labels: d.labels()}
}

// policies have different names, as in a cluster.
func (d *dice) policies() []PeerAuthentication {
	var policies []PeerAuthentication
	for i := range d.roll(12) {
		p := PeerAuthentication{
			Namespace: d.pick("default", "test", "istio-system", ""),
			Name:      d.pick("a", "B", "") + string(rune('a'+i)),
			Created:   d.created(),
			Selector:  d.labels(),
			Mode:      Mode(d.roll(4)),
		}
		for range d.roll(3) {
			if p.Ports == nil {
				p.Ports = make(map[uint16]Mode)
			}
			p.Ports[[]uint16{80, 9080, 65535}[d.roll(3)]] = Mode(d.roll(4))
		}
		policies = append(policies, p)
	}
	return policies
}

func (d *dice) tls() *ClientTLS {
	if d.roll(6) == 0 {
		return nil
	}
	return &ClientTLS{
		Mode:              TLSMode(d.roll(6)), // one beyond the known
		ClientCertificate: d.pick("", "/cert"),
		PrivateKey:        d.pick("", "/key"),
		CredentialName:    d.pick("", "secret"),
	}
}

func (d *dice) rules() []DestinationRule {
	var rules []DestinationRule
	for i := range d.roll(12) {
		r := DestinationRule{
			Namespace: d.pick("default", "test", "istio-system", ""),
			Name:      d.pick("a", "B", "") + string(rune('a'+i)),
			Created:   d.created(),
			Host: d.pick("reviews", "reviews.default.svc.cluster.local", "*.default.svc.cluster.local", "*", "*.local",
				"", "reviews.default", "*.svc.cluster.local", "re*", "*reviews.default.svc.cluster.local"),
			TLS:      d.tls(),
			Selector: d.labels(),
		}
		if d.roll(2) == 0 {
			r.PortTLS = map[uint16]*ClientTLS{80: d.tls()}
		}
		for range d.roll(3) {
			r.ExportTo = append(r.ExportTo, d.pick(".", "*", "default", "test", "istio-system"))
		}
		rules = append(rules, r)
	}
	return rules
}

func seeds(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte("namespace strict, workload permissive"))
	for seed := range uint64(64) {
		r := rand.New(rand.NewPCG(seed, 1))
		data := make([]byte, 40+seed*4)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		f.Add(data)
	}
}

func shuffled[T any](list []T) []T {
	r := rand.New(rand.NewPCG(uint64(len(list)), 7))
	other := append([]T(nil), list...)
	r.Shuffle(len(other), func(i, j int) { other[i], other[j] = other[j], other[i] })
	return other
}

// FuzzEffective checks that evaluation is total, agrees with the oracle, and does not depend on input order.
func FuzzEffective(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		d := &dice{data}
		w := d.workload()
		policies := d.policies()
		set := NewSet("istio-system", policies)
		got := set.Explain(w)
		if other := NewSet("istio-system", shuffled(policies)).Explain(w); !reflect.DeepEqual(got, other) {
			t.Fatalf("input order matters:\n%+v\n%+v", got, other)
		}
		if got.Mode == Unset || got.Mode > Strict {
			t.Fatalf("not total: %v", got.Mode)
		}
		for _, port := range []uint16{0, 1, 80, 9080, 65535} {
			mode, decidedBy := oracleEffective("istio-system", policies, w, port)
			if p := got.ForPort(port); p.Mode.String() != mode || p.Policy.String() != decidedBy {
				t.Errorf("port %d: %s by %s, want %s by %s", port, p.Mode, p.Policy, mode, decidedBy)
			}
		}
	})
}

// FuzzTighter checks that Tighter never loosens, is the least such, and does not care about order or repetition.
func FuzzTighter(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		d := &dice{data}
		modes := func() Modes {
			m := Modes{Default: Mode(d.roll(6)), Ports: make(map[uint16]Mode)}
			for range d.roll(4) {
				m.Ports[uint16(d.roll(4))] = Mode(d.roll(6))
			}
			return m
		}
		a, b, c := modes(), modes(), modes()
		ab := Tighter(a, b)
		for port := range uint16(5) {
			got, want := ab.ForPort(port), max(a.ForPort(port), b.ForPort(port))
			if got != want || got == Unset || got > Strict {
				t.Errorf("port %d: tighter of %s and %s is %s", port, a.ForPort(port), b.ForPort(port), got)
			}
		}
		if !ab.Equal(Tighter(b, a)) || !Tighter(a, a).Equal(a) || !Tighter(ab, c).Equal(Tighter(a, Tighter(b, c))) {
			t.Errorf("order or repetition matters: %v %v %v", a, b, c)
		}
	})
}

// FuzzLookup checks that the lookup is total, agrees with the oracle, and does not depend on input order.
func FuzzLookup(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		d := &dice{data}
		client := d.workload()
		service := Ref{d.pick("default", "test", "istio-system"), d.pick("reviews", "ratings")}
		rules := d.rules()
		set, other := NewRuleSet("", "", rules), NewRuleSet("istio-system", "cluster.local.", shuffled(rules))
		for _, port := range []uint16{80, 443} {
			got := set.Lookup(client, service, port)
			if again := other.Lookup(client, service, port); !reflect.DeepEqual(got, again) {
				t.Fatalf("input order matters: %+v %+v", got, again)
			}
			rule := oracleRule("istio-system", rules, client, service)
			var ref Ref
			if rule != nil {
				ref = Ref{rule.Namespace, rule.Name}
			}
			if want := oracleAction(rule, port); got.Client != want || got.Rule != ref {
				t.Errorf("port %d: %s by %s, want %s by %s", port, got.Client, got.Rule, want, ref)
			}
			if got.Reason == "" {
				t.Error("no reason given")
			}
		}
	})
}

// FuzzLint checks that whatever is given, the linter answers, and names the object in every finding.
func FuzzLint(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		d := &dice{data}
		in := LintInput{Policies: d.policies(), Rules: d.rules()}
		for range d.roll(5) {
			in.Workloads = append(in.Workloads, LintWorkload{Workload: d.workload(), Enrolled: d.roll(2) == 0})
		}
		for range d.roll(4) {
			in.Services = append(in.Services, LintService{Namespace: d.pick("default", "test"), Name: d.pick("reviews", "ratings"),
				Selector: d.labels(), Ports: map[uint16]uint16{80: 9080}})
		}
		for _, finding := range Lint(in) {
			if finding.Object == "" || finding.Message == "" || finding.Severity == 0 {
				t.Errorf("incomplete finding: %+v", finding)
			}
		}
	})
}
