package agent

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/tunnel/control"
)

func TestPodsAreCalledWhatIstioCallsThem(t *testing.T) {
	long := strings.Repeat("ü", 200)
	for name, test := range map[string]struct {
		owner  string
		labels map[string]string
		want   *control.Naming
	}{
		"pod that nothing made": {"", nil, &control.Naming{Workload: "till-7", Service: "till-7", Revision: "latest"}},
		"Deployment":            {"till", nil, &control.Naming{Workload: "till", Service: "till", Revision: "latest"}},
		"app and version":       {"till", map[string]string{"app": "shop", "version": "v2"}, &control.Naming{Workload: "till", Service: "shop", Revision: "v2"}},
		"recommended labels before those": {"till", map[string]string{
			"app": "a", "version": "v", "app.kubernetes.io/name": "shop", "app.kubernetes.io/version": "v3",
		}, &control.Naming{Workload: "till", Service: "shop", Revision: "v3"}},
		"Istio's own labels before all": {"till", map[string]string{
			"app": "a", "version": "v", "app.kubernetes.io/name": "b", "app.kubernetes.io/version": "w",
			"service.istio.io/canonical-name": "shop", "service.istio.io/canonical-revision": "v4",
		}, &control.Naming{Workload: "till", Service: "shop", Revision: "v4"}},
		"too long": {long, map[string]string{"version": long}, &control.Naming{
			Workload: strings.Repeat("ü", 126), Service: strings.Repeat("ü", 126), Revision: strings.Repeat("ü", 126),
		}},
	} {
		if got := namingOf(&source.Pod{Namespace: "shop", Name: "till-7", Owner: test.owner, Labels: test.labels}); !proto.Equal(got, test.want) {
			t.Errorf("%s: got %v, want %v", name, got, test.want)
		}
	}
}

func TestAnswersNameServiceAndPods(t *testing.T) {
	a := routing(nil, nil)
	for to, want := range map[string]string{
		serviceAddress + ":80": "web/server", serviceAddress + ":81": "web/server", serverAddress + ":8080": "", "10.1.0.99:80": "",
	} {
		answer, _ := a.resolve(destination{clientID, netip.MustParseAddrPort(to)})
		if answer.Service != want {
			t.Errorf("%s: Service %q, want %q", to, answer.Service, want)
		}
		for _, e := range answer.Endpoints {
			if named := e.Naming.GetWorkload() == "server" && e.Naming.GetRevision() == "latest"; named != (e.Workload != "") {
				t.Errorf("%s: %v", to, e)
			}
		}
	}
}

func TestHeadlessServiceIsNamedByItsEndpoint(t *testing.T) {
	a := routing(nil, nil)
	x := source.NewIndex("")
	endpoint := netip.MustParseAddrPort(serverAddress + ":8080")
	x.SetPod(&source.Pod{Namespace: "web", Name: "server", Addresses: []netip.Addr{endpoint.Addr()}})
	x.SetService(&source.Service{Namespace: "web", Name: "headless", Ports: []source.ServicePort{{Port: 80, Endpoints: []netip.AddrPort{endpoint}}}})
	a.snapshot = x.Snapshot()
	if answer, _ := a.resolve(destination{clientID, endpoint}); answer.Service != "web/headless" {
		t.Errorf("Service %q", answer.Service)
	}
}

// TestNamesNeverKeepAnAnswerFromFitting: a message that is too large would cost the tunnel its session.
func TestNamesNeverKeepAnAnswerFromFitting(t *testing.T) {
	r := routing(nil, nil).router()
	for name, bytes := range map[string]int{"short": 20, "long": longestName} {
		answer := &control.Route{}
		for i := range maxEndpoints {
			answer.Endpoints = append(answer.Endpoints, &control.Endpoint{
				Identity: strings.Repeat("x", 200), Naming: &control.Naming{
					Workload: fmt.Sprintf("%0*d", bytes, i), Service: strings.Repeat("x", bytes), Revision: strings.Repeat("x", bytes)},
			})
		}
		r.name(answer, netip.MustParseAddrPort(serviceAddress+":80"))
		size := proto.Size(&control.FromAgent{Message: &control.FromAgent_Route{Route: answer}})
		if kept := answer.Endpoints[0].Naming != nil; size > control.MaxMessage || kept != (name == "short") || answer.Service == "" {
			t.Errorf("%s: %d bytes, names kept: %v", name, size, kept)
		}
	}
}

func TestPodsOfOneDeploymentShareTheirNaming(t *testing.T) {
	r, answer := routing(nil, nil).router(), &control.Route{}
	for _, owner := range []string{"till", "till", "bank"} {
		answer.Endpoints = append(answer.Endpoints, &control.Endpoint{Naming: namingOf(&source.Pod{Owner: owner})})
	}
	r.name(answer, netip.AddrPort{})
	if e := answer.Endpoints; e[0].Naming != e[1].Naming || e[2].Naming.Workload != "bank" {
		t.Errorf("got %v", e)
	}
}

func TestTunnelsAreToldOfANewName(t *testing.T) {
	a := routing(nil, nil)
	s := &session{queue: make(chan outgoing, 8)}
	a.sessions = map[*session]struct{}{s: {}}
	w := a.workloads[clientID]
	told := func(labels map[string]string) (revision string) {
		pod := *w.pod
		pod.Labels = labels
		a.renew(w, &pod)
		select {
		case o := <-s.queue:
			return o.message.GetWorkload().GetNaming().GetRevision()
		default:
			return ""
		}
	}
	if got := told(map[string]string{"tier": "front"}); got != "" {
		t.Errorf("told of %s although nothing is called otherwise", got)
	}
	if got := told(map[string]string{"version": "v2"}); got != "v2" {
		t.Errorf("told of %q, want v2", got)
	}
}

func TestWelcomeNamesTheCluster(t *testing.T) {
	for _, test := range []struct{ options, want [2]string }{
		{[2]string{}, [2]string{"Kubernetes", "cluster.local"}},
		{[2]string{"east", "east.test"}, [2]string{"east", "east.test"}},
	} {
		a := &Agent{Options: Options{ClusterID: test.options[0], ClusterDomain: test.options[1]}}
		if w := a.welcomeMessage().GetWelcome(); w.Cluster != test.want[0] || w.ClusterDomain != test.want[1] {
			t.Errorf("got %s, %s", w.Cluster, w.ClusterDomain)
		}
	}
}
