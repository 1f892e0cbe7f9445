package telemetry

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestPartyOf(t *testing.T) {
	tests := map[string]Party{
		"spiffe://cluster.local/ns/shop/sa/till": {Workload: "till", Application: "till", Namespace: "shop", Principal: "spiffe://cluster.local/ns/shop/sa/till"},
		"spiffe://elsewhere.test/workload":       {Principal: "spiffe://elsewhere.test/workload"},
		"":                                       {},
		"spiffe://cluster.local/" + strings.Repeat("x", 2000): otherParty(),
	}
	for identity, want := range tests {
		if got := PartyOf(identity); got != want {
			t.Errorf("%.60s: got %+v, want %+v", identity, got, want)
		}
	}
}

// TestLabels: every label that Istio's ztunnel gives, whatever is known.
func TestLabels(t *testing.T) {
	full := named(id("till"), id("bank"), "till-v2", "bank-v1")
	odd := labels("", "")
	odd.Source = Party{Workload: "a\"b\\c\nd", Cluster: `"`, Revision: strings.Repeat("ü", 200), Principal: strings.Repeat("x", 600)}.Bounded()
	for name, test := range map[string]struct {
		labels Labels
		want   map[string]string
	}{
		"all is known": {full, map[string]string{
			"source_workload": "till-v2", "source_canonical_service": "app-of-till-v2", "source_canonical_revision": "version-1",
			"source_workload_namespace": "shop", "source_principal": id("till"), "source_app": "app-of-till-v2", "source_version": "version-1",
			"source_cluster": "Kubernetes", "destination_service": "service-of-bank-v1.shop.svc.cluster.local",
			"destination_service_namespace": "shop", "destination_service_name": "service-of-bank-v1", "destination_workload": "bank-v1",
			"destination_canonical_service": "app-of-bank-v1", "destination_canonical_revision": "version-1",
			"destination_workload_namespace": "shop", "destination_principal": id("bank"), "destination_app": "app-of-bank-v1",
			"destination_version": "version-1", "destination_cluster": "Kubernetes",
		}},
		"nothing is known": {labels("", ""), nil},
		"names that have to be escaped and cut": {odd, map[string]string{
			"source_workload": "a\"b\\c\nd", "source_cluster": `"`, "source_principal": "other", "source_canonical_revision": strings.Repeat("ü", 126), "source_version": strings.Repeat("ü", 126),
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var traffic Traffic
			traffic.Close(traffic.Open(test.labels))
			want := map[string]string{"reporter": "source", "request_protocol": "tcp", "response_flags": "-", "connection_security_policy": "mutual_tls",
				"destination_service": "unknown", "destination_service_namespace": "unknown", "destination_service_name": "unknown"}
			for _, end := range []string{"source_", "destination_"} {
				for _, one := range []string{"workload", "canonical_service", "canonical_revision", "workload_namespace", "principal", "app", "version", "cluster"} {
					want[end+one] = "unknown"
				}
			}
			maps.Copy(want, test.want)
			got := labelsOf(parse(t, text(t, &traffic))["istio_tcp_connections_opened_total"].GetMetric()[0])
			if !maps.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
}

// TestWorkloadsOfOneIdentity: two Deployments with one service account are two, and so are two Services of one Deployment.
func TestWorkloadsOfOneIdentity(t *testing.T) {
	var traffic Traffic
	again := named(id("till"), id("bank"), "till-v1", "bank")
	again.Destination.Service.Name = "bank-too"
	for _, l := range []Labels{named(id("till"), id("bank"), "till-v1", "bank"), named(id("till"), id("bank"), "till-v2", "bank"), again} {
		traffic.Close(traffic.Open(l))
		traffic.Close(traffic.Open(l))
	}
	for _, s := range traffic.all() {
		if n := s.opened.Load(); n != 2 {
			t.Errorf("%+v: %d", s.key, n)
		}
	}
	if n := len(traffic.all()); n != 3 {
		t.Errorf("%d series, want 3", n)
	}
}

// TestBound: beyond the bound nothing is lost but the names.
func TestBound(t *testing.T) {
	var traffic Traffic
	const peers = MostSeries + 500
	for i := range peers {
		s := traffic.Open(labels(id("till"), id(fmt.Sprint("peer-", i))))
		s.Transferred(2, 3)
		traffic.Close(s)
	}
	again := traffic.Open(labels(id("till"), id("peer-0"))) // known ones stay known
	if again.key.destination.Workload != "peer-0" {
		t.Errorf("a known peer became %s", again.key.destination.Workload)
	}
	var opened, received, sent uint64
	all := traffic.all()
	for _, s := range all {
		opened, received, sent = opened+s.opened.Load(), received+s.received.Load(), sent+s.sent.Load()
	}
	if opened != peers+1 || received != 2*peers || sent != 3*peers {
		t.Errorf("%d connections, %d and %d bytes in all", opened, received, sent)
	}
	if len(all) != MostSeries+1 {
		t.Errorf("%d series, want %d and one for others", len(all), MostSeries)
	}
	if n := len(traffic.parties); n > MostSeries+2 {
		t.Errorf("%d parties", n)
	}
}

func TestSweep(t *testing.T) {
	all := func(Party) bool { return true }
	none := func(Party) bool { return false }
	tests := []struct {
		name    string
		open    bool
		idle    time.Duration
		present func(Party) bool
		kept    bool
	}{
		{"just ended", false, time.Minute, all, true},
		{"idle for days", false, 48 * time.Hour, all, true},
		{"workload just gone", false, time.Minute, none, true},
		{"workload gone", false, 3 * time.Minute, none, false},
		{"workload gone, still open", true, 3 * time.Minute, none, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var traffic Traffic
				s := traffic.Open(labels(id("till"), id("bank")))
				if !test.open {
					traffic.Close(s)
				}
				time.Sleep(test.idle)
				traffic.Sweep(time.Now(), test.present)
				if kept := strings.Contains(string(text(t, &traffic)), id("till")); kept != test.kept {
					t.Errorf("kept %v, want %v", kept, test.kept)
				}
				if want := map[bool]int{true: 2}[test.kept]; len(traffic.parties) != want {
					t.Errorf("%d parties left, want %d", len(traffic.parties), want)
				}
			})
		})
	}
}

// TestSweepIsAboutTheLocalEnd: a peer of another node has no workload here, which is no reason to forget it. Of two
// workloads with one identity the one that is gone is forgotten, by whichever Service it was reached.
func TestSweepIsAboutTheLocalEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var traffic Traffic
		for _, near := range []string{"near-v1", "near-v2"} {
			l := named(id("far"), id("near"), "far", near)
			l.Reporter = ReporterDestination
			traffic.Close(traffic.Open(l))
		}
		time.Sleep(5 * time.Minute)
		here := named("", id("near"), "", "near-v2").Destination
		here.Service = Service{}
		traffic.Sweep(time.Now(), func(p Party) bool { return p == here })
		if all := traffic.all(); len(all) != 1 || all[0].key.destination.Workload != "near-v2" {
			t.Errorf("%d series are left", len(all))
		}
	})
}

// TestSweepMakesRoom: of too many the ones go that have been idle for longest, and neither what is open nor what nobody may
// have seen yet.
func TestSweepMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var traffic Traffic
		peer := func(kind string, n int) { traffic.Close(traffic.Open(labels(id("till"), id(fmt.Sprint(kind, n))))) }
		traffic.Open(labels(id("till"), id("open")))
		for i := range comfortable {
			peer("old", i)
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Hour)
		for i := range 1000 {
			peer("new", i)
		}
		traffic.Sweep(time.Now(), func(Party) bool { return true })
		kept := map[string]bool{}
		for _, s := range traffic.all() {
			kept[s.key.destination.Workload] = true
		}
		if len(kept) != comfortable || !kept["open"] || !kept["new0"] || !kept["new999"] || kept["old0"] || kept["old1000"] || !kept["old1001"] {
			t.Errorf("%d are kept, among them: %t %t %t %t %t %t", len(kept), kept["open"], kept["new0"], kept["new999"], kept["old0"], kept["old1000"], kept["old1001"])
		}
		if n := len(traffic.parties); n != comfortable+1 {
			t.Errorf("%d parties", n)
		}
	})
}

// TestWhatFoundNoRoomIsCountedOn: others are nobody's workload, and their counters go on all the same.
func TestWhatFoundNoRoomIsCountedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var traffic Traffic
		traffic.Close(traffic.Open(Labels{Reporter: ReporterSource, Source: otherParty(), Destination: otherParty(), Flags: FlagsNone}))
		time.Sleep(time.Hour)
		traffic.Sweep(time.Now(), func(Party) bool { return false })
		if len(traffic.all()) != 1 {
			t.Error("dropped")
		}
	})
}
