package datapath

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/culvert-mesh/culvert/policy"
)

func TestPodInterface(t *testing.T) {
	l := newLab(t, modes(policy.Strict, nil))
	h, err := netlink.NewHandleAt(netns.NsHandle(l.pod.Fd()))
	must(t, err)
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "net1"
	must(t, h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "net1-peer"}))
	net1, err := h.LinkByName("net1")
	must(t, err)
	addr, err := netlink.ParseAddr("10.50.0.1/32")
	must(t, err)
	peer, err := netlink.ParseIPNet("10.50.0.9/32")
	must(t, err)
	addr.Peer = peer
	must(t, h.AddrAdd(net1, addr))
	for _, c := range []struct {
		name string
		w    Workload
		want string // empty: an error
	}{
		{"IPv4", Workload{IPv4: pod4}, "eth0"},
		{"IPv6", Workload{IPv6: pod6}, "eth0"},
		{"both", Workload{IPv4: pod4, IPv6: pod6}, "eth0"},
		{"by name", Workload{Interface: "net1", IPv4: pod4}, "net1"},
		{"our end of two", Workload{IPv4: netip.MustParseAddr("10.50.0.1")}, "net1"},
		{"the other end", Workload{IPv4: netip.MustParseAddr("10.50.0.9")}, ""},
		{"nobody's address", Workload{IPv4: client4}, ""},
		{"no such name", Workload{Interface: "net2", IPv4: pod4}, ""},
		{"not Ethernet", Workload{Interface: "lo", IPv4: pod4}, ""},
		{"no address", Workload{}, ""},
	} {
		got := ""
		err := inNetns(l.pod, func() error {
			i, err := podInterface(c.w)
			if err == nil {
				got = i.Name
			}
			return err
		})
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v, want %q", c.name, got, err, c.want)
		}
	}
}
