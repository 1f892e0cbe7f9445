package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/culvert-mesh/culvert/agent/source"
)

func ptr[T any](v T) *T { return &v }

func webService(change func(*core.Service)) *core.Service {
	s := &core.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "web"},
		Spec: core.ServiceSpec{
			ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"},
			Ports: []core.ServicePort{
				{Name: "http", Port: 80, TargetPort: intstr.FromString("web"), Protocol: core.ProtocolTCP},
				{Name: "dns", Port: 53, Protocol: core.ProtocolUDP},
			},
		},
	}
	if change != nil {
		change(s)
	}
	return s
}

// an endpoint is written as "address node flags hints": flags of r (ready), t (terminating and serving), - (neither);
// hints as z=zone or n=node.
func sliceOf(name string, port int32, endpoints ...string) *discovery.EndpointSlice {
	s := &discovery.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "n", Name: name, Labels: map[string]string{discovery.LabelServiceName: "web"}},
		AddressType: discovery.AddressTypeIPv4,
		Ports:       []discovery.EndpointPort{{Name: ptr("http"), Port: &port}, {Name: ptr("dns"), Port: ptr[int32](53), Protocol: ptr(core.ProtocolUDP)}},
	}
	for _, text := range endpoints {
		f := strings.Fields(text)
		e := discovery.Endpoint{Addresses: []string{f[0]}, NodeName: &f[1]}
		e.Conditions = discovery.EndpointConditions{Ready: ptr(f[2] == "r"), Serving: ptr(f[2] != "-"), Terminating: ptr(f[2] == "t")}
		if len(f) > 3 {
			e.Hints = &discovery.EndpointHints{}
			if zone, ok := strings.CutPrefix(f[3], "z="); ok {
				e.Hints.ForZones = []discovery.ForZone{{Name: zone}}
			}
			if node, ok := strings.CutPrefix(f[3], "n="); ok {
				e.Hints.ForNodes = []discovery.ForNode{{Name: node}}
			}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func TestEndpoints(t *testing.T) {
	local := func(s *core.Service) { s.Spec.InternalTrafficPolicy = ptr(core.ServiceInternalTrafficPolicyLocal) }
	for _, tc := range []struct {
		name   string
		change func(*core.Service)
		slices []*discovery.EndpointSlice
		want   string
	}{
		{name: "none"},
		{name: "several slices", slices: []*discovery.EndpointSlice{
			sliceOf("a", 8080, "10.0.0.2 there r", "10.0.0.3 there -"), sliceOf("b", 8081, "10.0.0.1 here r"),
		}, want: "10.0.0.1:8081 10.0.0.2:8080"},
		{name: "ready before terminating", slices: []*discovery.EndpointSlice{
			sliceOf("a", 8080, "10.0.0.1 here t"), sliceOf("b", 8080, "10.0.0.2 there r"),
		}, want: "10.0.0.2:8080"},
		{name: "terminating when none is ready", slices: []*discovery.EndpointSlice{
			sliceOf("a", 8080, "10.0.0.1 here t", "10.0.0.2 there -"),
		}, want: "10.0.0.1:8080"},
		{name: "local only", change: local, slices: []*discovery.EndpointSlice{
			sliceOf("a", 8080, "10.0.0.1 here r", "10.0.0.2 there r"),
		}, want: "10.0.0.1:8080"},
		{name: "local only, none here", change: local, slices: []*discovery.EndpointSlice{sliceOf("a", 8080, "10.0.0.2 there r")}},
		{name: "local only, hints do not count", change: local, slices: []*discovery.EndpointSlice{
			sliceOf("a", 8080, "10.0.0.1 here r z=other", "10.0.0.2 here r z=mine"),
		}, want: "10.0.0.1:8080 10.0.0.2:8080"},
		{name: "zone", slices: []*discovery.EndpointSlice{
			sliceOf("a", 8080, "10.0.0.1 there r z=mine", "10.0.0.2 there r z=other"),
		}, want: "10.0.0.1:8080"},
		{name: "one without a hint", slices: []*discovery.EndpointSlice{
			sliceOf("a", 8080, "10.0.0.1 there r z=mine", "10.0.0.2 there r"),
		}, want: "10.0.0.1:8080 10.0.0.2:8080"},
		{name: "no hint for this zone", slices: []*discovery.EndpointSlice{
			sliceOf("a", 8080, "10.0.0.1 there r z=other", "10.0.0.2 there r z=other"),
		}, want: "10.0.0.1:8080 10.0.0.2:8080"},
		{name: "node", slices: []*discovery.EndpointSlice{
			sliceOf("a", 8080, "10.0.0.1 there r n=here", "10.0.0.2 here r n=there"),
		}, want: "10.0.0.1:8080"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := newServiceTables(source.NewIndex("here"), "here")
			for _, s := range tc.slices { // before the Service, as may be
				sliceTable{x}.set(objectKey{"n", s.Name}, convertSlice(s))
			}
			serviceTable{x}.set(objectKey{"n", "web"}, convertService(webService(tc.change)))
			x.place(nil, "mine")
			x.flush()
			s := x.index.Snapshot().ServiceByAddress(netip.MustParseAddrPort("10.96.0.1:80"))
			if s == nil || len(s.Ports) != 1 || s.Ports[0].Target != "web" {
				t.Fatalf("Service %+v", s)
			}
			var got []string
			for _, e := range s.Ports[0].Endpoints {
				got = append(got, e.String())
			}
			if strings.Join(got, " ") != tc.want {
				t.Errorf("got %v, want %s", got, tc.want)
			}
		})
	}
}

// TestSliceMoves: a slice that changes its Service, or goes, leaves nothing behind.
func TestSliceMoves(t *testing.T) {
	x := newServiceTables(source.NewIndex("here"), "here")
	serviceTable{x}.set(objectKey{"n", "web"}, convertService(webService(nil)))
	endpoints := func() int {
		x.flush()
		x.index.Snapshot()
		return len(x.endpoints(x.services[objectKey{"n", "web"}], x.slices[objectKey{"n", "web"}], "http"))
	}
	s := sliceOf("a", 8080, "10.0.0.1 here r")
	sliceTable{x}.set(objectKey{"n", "a"}, convertSlice(s))
	if endpoints() != 1 {
		t.Error("the endpoint is missing")
	}
	s.Labels[discovery.LabelServiceName] = "other"
	sliceTable{x}.set(objectKey{"n", "a"}, convertSlice(s))
	if endpoints() != 0 || len(x.slices) != 1 {
		t.Errorf("the slice did not move: %v", x.slices)
	}
	sliceTable{x}.remove(objectKey{"n", "a"})
	if endpoints() != 0 || len(x.slices)+len(x.owner) != 0 {
		t.Errorf("left behind: %v, %v", x.slices, x.owner)
	}
}

func TestExternalAddresses(t *testing.T) {
	balancer := func(mode core.LoadBalancerIPMode, ranges ...string) func(*core.Service) {
		return func(s *core.Service) {
			s.Spec.Type, s.Spec.LoadBalancerSourceRanges = core.ServiceTypeLoadBalancer, ranges
			s.Status.LoadBalancer.Ingress = []core.LoadBalancerIngress{{IP: "192.0.2.7", IPMode: &mode}, {Hostname: "lb.example"}}
		}
	}
	for _, tc := range []struct {
		name   string
		change func(*core.Service)
		want   []string
	}{
		{"none", nil, nil},
		{"externalIPs", func(s *core.Service) { s.Spec.ExternalIPs = []string{"192.0.2.2", "192.0.2.1", "192.0.2.1"} }, []string{"192.0.2.1", "192.0.2.2"}},
		{"nonsense", func(s *core.Service) {
			s.Spec.ExternalIPs = []string{"127.0.0.1", "169.254.169.254", "0.0.0.0", "x", "224.0.0.1", "fe80::1"}
		}, nil},
		{"of the cluster's ranges", func(s *core.Service) { s.Spec.ExternalIPs = []string{"10.244.7.7", "10.96.3.3"} }, nil},
		{"another Service's", func(s *core.Service) { s.Spec.ExternalIPs = []string{"203.0.113.1"} }, nil},
		{"load balancer", balancer(core.LoadBalancerIPModeVIP), []string{"192.0.2.7"}},
		{"load balancer that proxies", balancer(core.LoadBalancerIPModeProxy), nil},
		{"load balancer with ranges", balancer(core.LoadBalancerIPModeVIP, "192.0.2.0/24"), nil},
		{"headless", func(s *core.Service) {
			s.Spec.ClusterIP, s.Spec.ClusterIPs, s.Spec.ExternalIPs = "None", []string{"None"}, []string{"192.0.2.1"}
		}, nil},
		{"ExternalName", func(s *core.Service) {
			s.Spec.Type, s.Spec.ExternalName, s.Spec.ExternalIPs = core.ServiceTypeExternalName, "x.example", []string{"192.0.2.1"}
		}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := newServiceTables(source.NewIndex("here"), "here")
			serviceTable{x}.set(objectKey{"n", "web"}, convertService(webService(tc.change)))
			x.place([]netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("10.96.0.0/16")}, "")
			x.flush()
			// The rival comes later: what it has may not be claimed any more.
			serviceTable{x}.set(objectKey{"n", "rival"}, convertService(webService(func(s *core.Service) {
				s.Name, s.Spec.ClusterIP, s.Spec.ClusterIPs = "rival", "203.0.113.1", []string{"203.0.113.1"}
			})))
			if tc.name == "another Service's" && len(x.changed) != 2 {
				t.Errorf("changed: %v", x.changed)
			}
			x.flush()
			var got []string
			for _, a := range x.claimable(x.services[objectKey{"n", "web"}].External) {
				got = append(got, a.String())
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestJoinRanges(t *testing.T) {
	var thousand []string
	for i := range 1024 {
		thousand = append(thousand, fmt.Sprintf("10.%d.%d.0/24", i/256, i%256))
	}
	for _, tc := range []struct{ in, want string }{
		{"", ""},
		{"10.0.1.0/24 10.0.0.0/24", "10.0.0.0/23"},
		{"10.0.1.0/24 10.0.2.0/24", "10.0.1.0/24 10.0.2.0/24"},
		{"10.0.0.0/8 10.3.0.0/16 10.0.0.0/8", "10.0.0.0/8"},
		{"fd00::/64 10.0.0.0/24 fd00:0:0:1::/64", "10.0.0.0/24 fd00::/63"},
		{"0.0.0.0/0 x 10.0.0.7/24", "10.0.0.0/24"},
		{strings.Join(thousand, " "), "10.0.0.0/14"},
	} {
		var got []string
		for _, p := range joinRanges(parseRanges(strings.Fields(tc.in))) {
			got = append(got, p.String())
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%.60s: got %v, want %s", tc.in, got, tc.want)
		}
	}
}
