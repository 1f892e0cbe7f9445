package kube

import (
	"errors"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/culvert-mesh/culvert/policy"
)

// TestLastGood: a bad version never replaces a good one of the same object; one of another object of that name has none.
func TestLastGood(t *testing.T) {
	type pa = policy.PeerAuthentication
	given := map[string][]pa{}
	table := newIstioTable("PeerAuthentication", func(namespace string, all []pa) { given[namespace] = all })
	k := objectKey{"n", "p"}
	good := func(uid string, m policy.Mode) parsed[pa] {
		return parsed[pa]{uid: uid, good: &pa{Namespace: "n", Name: "p", Mode: m}}
	}
	bad := func(uid string) parsed[pa] { return parsed[pa]{uid: uid, err: errors.New("bad")} }
	for i, step := range []struct {
		do         func()
		mode       policy.Mode // of the only policy; Unset is none
		problems   int
		unreadable bool
	}{
		{func() { table.set(k, bad("1")) }, policy.Unset, 1, true},
		{func() { table.set(k, good("1", policy.Strict)) }, policy.Strict, 0, false},
		{func() { table.set(k, bad("1")) }, policy.Strict, 1, false},
		{func() { table.set(k, bad("1")) }, policy.Strict, 1, false},
		{func() { table.set(k, good("1", policy.Permissive)) }, policy.Permissive, 0, false},
		{func() { table.set(k, bad("2")) }, policy.Unset, 1, true},
		{func() { table.remove(k) }, policy.Unset, 0, false},
		{func() { table.remove(k) }, policy.Unset, 0, false},
		{func() { table.set(k, good("3", policy.Strict)); table.remove(k) }, policy.Unset, 0, false},
	} {
		step.do()
		table.flush()
		problems, unreadable := table.list()
		got := policy.Unset
		if all := given["n"]; len(all) > 0 {
			got = all[0].Mode
		}
		if got != step.mode || len(problems) != step.problems || slices.Contains(unreadable, "n") != step.unreadable {
			t.Errorf("step %d: mode %v, problems %v, unreadable %v", i, got, problems, unreadable)
		}
	}
	if len(table.objects) != 0 {
		t.Errorf("left behind: %v", table.objects)
	}
}

// TestRefusal: a rule that was never readable refuses connections to its host, and gives way to what can be read.
func TestRefusal(t *testing.T) {
	const broken = `{"host":"web","exportTo":["."],"workloadSelector":{"matchLabels":{"app":"c"}},"trafficPolicy":{"tls":{"mode":"MUTUALISH"}}}`
	rule := func(spec string) any {
		var u unstructured.Unstructured
		if err := u.UnmarshalJSON([]byte(`{"kind":"DestinationRule","apiVersion":"networking.istio.io/v1",` +
			`"metadata":{"namespace":"n","name":"r","uid":"u"},"spec":` + spec + `}`)); err != nil {
			t.Fatal(err)
		}
		return convertRule(&u)
	}
	var given []policy.DestinationRule
	table := newIstioTable("DestinationRule", func(_ string, all []policy.DestinationRule) { given = all })
	look := func(client policy.Workload) policy.ClientAction {
		table.flush()
		set := policy.NewRuleSet("", "", given)
		return set.Lookup(client, policy.Ref{Namespace: "n", Name: "web"}, 80).Client
	}
	client := policy.Workload{Namespace: "n", Labels: map[string]string{"app": "c"}}
	k := objectKey{"n", "r"}
	for _, step := range []struct {
		name, spec string
		want       policy.ClientAction
	}{
		{"never good", broken, policy.Originate},
		{"no host", `{"hots":"web","trafficPolicy":{"tls":{"mode":"ISTIO_MUTUAL"}}}`, policy.Auto},
		{"no spec", `"web"`, policy.Auto},
		{"never good, again", `{"host":"web","exportTo":".","trafficPolicy":[]}`, policy.Originate},
		{"good", `{"host":"web","trafficPolicy":{"tls":{"mode":"ISTIO_MUTUAL"}}}`, policy.Mutual},
		{"bad after good", broken, policy.Mutual},
	} {
		table.set(k, rule(step.spec))
		if got := look(client); got != step.want {
			t.Errorf("%s: %v, want %v", step.name, got, step.want)
		}
	}
	table.remove(k)
	if got := look(client); got != policy.Auto {
		t.Errorf("removed: %v", got)
	}
	table.set(k, rule(broken))
	for _, other := range []policy.Workload{{Namespace: "m"}, {Namespace: "n"}} {
		if got := look(other); got != policy.Auto {
			t.Errorf("a client that it is not for: %v", got)
		}
	}
	table.remove(k)
	if look(client); len(given) != 0 {
		t.Errorf("left behind: %+v", given)
	}
}

// TestOnlyWhatChanged: namespaces whose policies did not change are not given again.
func TestOnlyWhatChanged(t *testing.T) {
	calls := 0
	table := newIstioTable("PeerAuthentication", func(string, []policy.PeerAuthentication) { calls++ })
	for _, namespace := range []string{"a", "b"} {
		table.set(objectKey{namespace, "p"}, parsed[policy.PeerAuthentication]{good: &policy.PeerAuthentication{}})
	}
	table.flush()
	table.set(objectKey{"a", "q"}, parsed[policy.PeerAuthentication]{good: &policy.PeerAuthentication{}})
	table.flush()
	table.flush()
	if calls != 3 {
		t.Errorf("%d calls", calls)
	}
}
