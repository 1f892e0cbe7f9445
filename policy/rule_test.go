package policy

import (
	"fmt"
	"testing"
	"time"
)

func tls(m TLSMode) *ClientTLS { return &ClientTLS{Mode: m} }

func dr(namespace, name string, created time.Time, host string, t *ClientTLS) DestinationRule {
	return DestinationRule{Namespace: namespace, Name: name, Created: created, Host: host, TLS: t}
}

// with changes a rule in place of a literal with many fields.
func (r DestinationRule) with(change func(*DestinationRule)) DestinationRule {
	change(&r)
	return r
}

func TestLookup(t *testing.T) {
	client := Workload{Namespace: "web", Name: "frontend", Labels: app("frontend")}
	payment := Ref{"default", "payment"}
	const full = "payment.default.svc.cluster.local"
	export := func(to ...string) func(*DestinationRule) { return func(r *DestinationRule) { r.ExportTo = to } }
	selects := func(labels map[string]string) func(*DestinationRule) {
		return func(r *DestinationRule) { r.Selector = labels }
	}
	onPort := func(port uint16, t *ClientTLS) func(*DestinationRule) {
		return func(r *DestinationRule) { r.PortTLS = map[uint16]*ClientTLS{port: t} }
	}
	for _, tt := range []struct {
		name  string
		rules []DestinationRule
		want  string
	}{
		{"no rule", nil, "auto default"},
		{"a rule of the Service's namespace with a short name",
			[]DestinationRule{dr("default", "r", at(0), "payment", tls(TLSIstioMutual))}, "mutual default/r"},
		{"a short name means a Service of the rule's own namespace",
			[]DestinationRule{dr("web", "r", at(0), "payment", tls(TLSIstioMutual))}, "auto default"},
		{"a name with a dot is taken as it stands",
			[]DestinationRule{dr("web", "r", at(0), "payment.default", tls(TLSDisable))}, "auto default"},
		{"capitals and a final dot do not matter",
			[]DestinationRule{dr("web", "r", at(0), "Payment.default.svc.cluster.local.", tls(TLSDisable))}, "plaintext web/r"},
		{"the client's namespace comes before the Service's",
			[]DestinationRule{dr("default", "r", at(0), "payment", tls(TLSIstioMutual)), dr("web", "r", at(9), full, tls(TLSDisable))}, "plaintext web/r"},
		{"the Service's namespace comes before the root namespace",
			[]DestinationRule{dr("istio-system", "r", at(0), full, tls(TLSDisable)), dr("default", "r", at(9), "payment", tls(TLSIstioMutual))}, "mutual default/r"},
		{"the root namespace comes last",
			[]DestinationRule{dr("istio-system", "r", at(0), full, tls(TLSDisable))}, "plaintext istio-system/r"},
		{"a fourth namespace does not count",
			[]DestinationRule{dr("other", "r", at(0), full, tls(TLSDisable))}, "auto default"},
		{"a wildcard of the client's namespace beats an exact host of the Service's",
			[]DestinationRule{dr("web", "all", at(0), "*", tls(TLSDisable)), dr("default", "r", at(0), "payment", tls(TLSIstioMutual))}, "plaintext web/all"},
		{"an exact host beats an older wildcard",
			[]DestinationRule{dr("web", "all", at(0), "*.default.svc.cluster.local", tls(TLSDisable)), dr("web", "r", at(9), full, tls(TLSIstioMutual))}, "mutual web/r"},
		{"a longer wildcard beats an older shorter one",
			[]DestinationRule{dr("web", "all", at(0), "*", tls(TLSDisable)), dr("web", "ns", at(9), "*.default.svc.cluster.local", tls(TLSIstioMutual))}, "mutual web/ns"},
		{"a wildcard of another namespace's Services does not match",
			[]DestinationRule{dr("web", "r", at(0), "*.test.svc.cluster.local", tls(TLSDisable))}, "auto default"},
		{"a wildcard stands for at least one character",
			[]DestinationRule{dr("web", "r", at(0), "*"+full, tls(TLSDisable))}, "auto default"},
		{"of one host the oldest wins, however it is written",
			[]DestinationRule{dr("default", "a", at(5), full, tls(TLSDisable)), dr("default", "b", at(4), "payment", tls(TLSIstioMutual))}, "mutual default/b"},
		{"of one host and age the name decides",
			[]DestinationRule{dr("default", "b", at(5), full, tls(TLSDisable)), dr("default", "a", at(5), "payment", tls(TLSIstioMutual))}, "mutual default/a"},
		{"one object given twice does not depend on the order",
			[]DestinationRule{dr("default", "a", at(5), full, tls(TLSDisable)), dr("default", "a", at(5), full, tls(TLSDisable))}, "plaintext default/a"},
		{"a rule without tls is chosen, and hides later ones",
			[]DestinationRule{dr("web", "lb", at(0), full, nil), dr("default", "r", at(0), "payment", tls(TLSDisable))}, "auto web/lb"},
		{"a tls block without mode says nothing",
			[]DestinationRule{dr("web", "r", at(0), full, tls(TLSUnset))}, "auto web/r"},
		{"not exported to the client's namespace",
			[]DestinationRule{dr("default", "r", at(0), "payment", tls(TLSDisable)).with(export("."))}, "auto default"},
		{"exported to its own namespace",
			[]DestinationRule{dr("web", "r", at(0), full, tls(TLSDisable)).with(export("."))}, "plaintext web/r"},
		{"exported to the client's namespace by name",
			[]DestinationRule{dr("default", "r", at(0), "payment", tls(TLSDisable)).with(export("test", "web"))}, "plaintext default/r"},
		{"exported to all",
			[]DestinationRule{dr("default", "r", at(0), "payment", tls(TLSDisable)).with(export("*"))}, "plaintext default/r"},
		{"exported elsewhere only",
			[]DestinationRule{dr("web", "r", at(0), full, tls(TLSDisable)).with(export("test"))}, "auto default"},
		{"a hidden rule does not hide the next",
			[]DestinationRule{dr("default", "old", at(0), "payment", tls(TLSDisable)).with(export(".")), dr("default", "r", at(1), "payment", tls(TLSIstioMutual))},
			"mutual default/r"},
		{"a workloadSelector that matches the client",
			[]DestinationRule{dr("web", "r", at(0), full, tls(TLSDisable)).with(selects(app("frontend")))}, "plaintext web/r"},
		{"a workloadSelector that does not match the client",
			[]DestinationRule{dr("web", "r", at(0), full, tls(TLSDisable)).with(selects(app("other")))}, "auto default"},
		{"a workloadSelector does not reach clients of another namespace",
			[]DestinationRule{dr("default", "r", at(0), "payment", tls(TLSDisable)).with(selects(app("frontend")))}, "auto default"},
		{"settings for the port stand before those for all",
			[]DestinationRule{dr("web", "r", at(0), full, tls(TLSDisable)).with(onPort(8080, tls(TLSIstioMutual)))}, "mutual web/r"},
		{"settings for another port do not count",
			[]DestinationRule{dr("web", "r", at(0), full, tls(TLSDisable)).with(onPort(81, tls(TLSIstioMutual)))}, "plaintext web/r"},
		{"an entry for the port without tls inherits nothing",
			[]DestinationRule{dr("web", "r", at(0), full, tls(TLSDisable)).with(onPort(8080, nil))}, "auto web/r"},
		{"MUTUAL without certificates is mTLS or nothing",
			[]DestinationRule{dr("web", "r", at(0), full, &ClientTLS{Mode: TLSMutual, SNI: "x", CACertificates: "/ca"})}, "mutual web/r"},
		{"MUTUAL with certificates is TLS of its own",
			[]DestinationRule{dr("web", "r", at(0), full, &ClientTLS{Mode: TLSMutual, ClientCertificate: "/c", PrivateKey: "/k"})}, "originate web/r"},
		{"MUTUAL with a credential is TLS of its own",
			[]DestinationRule{dr("web", "r", at(0), full, &ClientTLS{Mode: TLSMutual, CredentialName: "c"})}, "originate web/r"},
		{"MUTUAL with half a certificate is not taken for mTLS",
			[]DestinationRule{dr("web", "r", at(0), full, &ClientTLS{Mode: TLSMutual, PrivateKey: "/k"})}, "originate web/r"},
		{"SIMPLE is TLS of its own",
			[]DestinationRule{dr("web", "r", at(0), full, tls(TLSSimple))}, "originate web/r"},
		{"an unknown mode is never plaintext",
			[]DestinationRule{dr("web", "r", at(0), full, tls(99))}, "originate web/r"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, rules := range [][]DestinationRule{tt.rules, reversed(tt.rules)} {
				d := NewRuleSet("", "", rules).Lookup(client, payment, 8080)
				if got := fmt.Sprint(d.Client, " ", d.Rule); got != tt.want {
					t.Errorf("got %s (%s), want %s", got, d.Reason, tt.want)
				}
			}
		})
	}
}

func TestLookupSaysWhy(t *testing.T) {
	rules := []DestinationRule{
		dr("default", "r", at(0), "payment", tls(TLSMutual)).with(func(r *DestinationRule) {
			r.PortTLS = map[uint16]*ClientTLS{8080: tls(TLSDisable)}
		}),
	}
	set := NewRuleSet("", "", rules)
	client := Workload{Namespace: "web"}
	for _, tt := range []struct {
		service Ref
		port    uint16
		want    string
	}{
		{Ref{"default", "payment"}, 80, "DestinationRule default/r: trafficPolicy.tls is MUTUAL without certificates: taken as ISTIO_MUTUAL, mTLS or no connection"},
		{Ref{"default", "payment"}, 8080, "DestinationRule default/r: portLevelSettings for port 8080 is DISABLE: plaintext"},
		{Ref{"default", "reviews"}, 80, "no DestinationRule for reviews.default.svc.cluster.local"},
		{Ref{}, 80, "the destination is not a Service"},
	} {
		if got := set.Lookup(client, tt.service, tt.port).Reason; got != tt.want {
			t.Errorf("%s: %q", tt.service, got)
		}
	}
}

func TestTheClusterDomainCanBeChosen(t *testing.T) {
	rules := []DestinationRule{dr("web", "r", at(0), "payment.default.svc.example.org", tls(TLSDisable))}
	client, service := Workload{Namespace: "web"}, Ref{"default", "payment"}
	if d := NewRuleSet("", "example.org", rules).Lookup(client, service, 80); d.Client != Plaintext {
		t.Errorf("got %s", d.Client)
	}
	if d := NewRuleSet("", "", rules).Lookup(client, service, 80); d.Client != Auto {
		t.Errorf("got %s", d.Client)
	}
}

func BenchmarkLookupAmongTenThousandRules(b *testing.B) {
	var rules []DestinationRule
	for i := range 10_000 {
		rules = append(rules, dr("default", fmt.Sprint("r", i), at(i), fmt.Sprint("svc-", i), tls(TLSIstioMutual)))
	}
	set := NewRuleSet("", "", rules)
	b.ReportAllocs()
	for b.Loop() {
		set.Lookup(Workload{Namespace: "web"}, Ref{"default", "svc-5000"}, 80)
	}
}
