package source

import (
	"net/netip"
	"testing"
)

func TestSnapshotByAddress(t *testing.T) {
	s := NewSnapshot("", Contents{
		Namespaces: []Namespace{{Name: "n", Labels: map[string]string{"a": "b"}}},
		Pods: []Pod{
			{Namespace: "n", Name: "p", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}},
			{Namespace: "n", Name: "host", HostNetwork: true, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
		},
		Services: []Service{{Namespace: "n", Name: "s", Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.1")}}},
	})
	for address, want := range map[string]string{
		"10.0.0.1": "n/p", "::ffff:10.0.0.1": "n/p", "fd00::1": "n/p", "192.0.2.1": "", "10.0.0.2": "",
	} {
		got := ""
		if p := s.PodByAddress(netip.MustParseAddr(address)); p != nil {
			got = p.Ref()
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", address, got, want)
		}
	}
	if s.ServiceByAddress(netip.MustParseAddrPort("[::ffff:10.96.0.1]:80")) == nil {
		t.Error("the Service is not found")
	}
	if s.Namespace("n").Labels["a"] != "b" || s.Namespace("unseen").Name != "unseen" {
		t.Error("namespaces are wrong")
	}
}

func TestPolicyUnreadable(t *testing.T) {
	for _, tc := range []struct {
		unreadable []string
		want       bool
	}{
		{nil, false}, {[]string{"other"}, false}, {[]string{"n"}, true}, {[]string{"root"}, true}, {[]string{"other", ""}, true},
	} {
		if got := NewSnapshot("", Contents{UnreadablePolicies: tc.unreadable}).PolicyUnreadable("n", "root"); got != tc.want {
			t.Errorf("%q: got %v", tc.unreadable, got)
		}
	}
}
