package source

import (
	"net/netip"
	"slices"
	"testing"
)

func TestAllPodsAndServicesEachOnce(t *testing.T) {
	addresses := func(all ...string) (parsed []netip.Addr) {
		for _, a := range all {
			parsed = append(parsed, netip.MustParseAddr(a))
		}
		return parsed
	}
	endpoints := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:80")}
	s := NewSnapshot("here", Contents{
		Pods: []Pod{
			{Namespace: "n", Name: "local", Node: "here", Addresses: addresses("10.0.0.1", "fd00::1")},
			{Namespace: "n", Name: "host", Node: "here", HostNetwork: true, Addresses: addresses("192.0.2.1")},
			{Namespace: "n", Name: "far", Node: "there", Addresses: addresses("10.0.0.2", "fd00::2")},
			// It claims what a newer pod has, and something of its own.
			{Namespace: "n", Name: "a-rival", Node: "there", Addresses: addresses("10.0.0.2", "10.0.0.4")},
			{Namespace: "n", Name: "far-host", Node: "there", HostNetwork: true, Addresses: addresses("192.0.2.2")},
		},
		Services: []Service{
			{Namespace: "n", Name: "dual", Addresses: addresses("10.96.0.1", "fd96::1"), External: addresses("198.51.100.1"), Ports: []ServicePort{{Port: 80, Endpoints: endpoints}}},
			{Namespace: "n", Name: "headless", Ports: []ServicePort{{Port: 80, Endpoints: endpoints}, {Port: 81, Endpoints: endpoints}}},
			{Namespace: "n", Name: "empty"},
		},
	})
	var pods, services []string
	for p := range s.All() {
		pods = append(pods, p.Name)
	}
	for service := range s.Services() {
		services = append(services, service.Name)
		if service.LeadsTo(s.LocalPod("n/host")) || !service.LeadsTo(s.LocalPod("n/local")) {
			t.Errorf("%s leads elsewhere", service.Name)
		}
	}
	slices.Sort(pods)
	slices.Sort(services)
	if want := []string{"a-rival", "far", "host", "local"}; !slices.Equal(pods, want) {
		t.Errorf("pods %q, want %q", pods, want)
	}
	if want := []string{"dual", "headless"}; !slices.Equal(services, want) {
		t.Errorf("Services %q, want %q", services, want)
	}
	for range s.All() {
		break
	}
	for range s.Services() {
		break
	}
}
