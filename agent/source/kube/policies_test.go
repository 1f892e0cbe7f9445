package kube

import (
	"errors"
	"slices"
	"testing"

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
