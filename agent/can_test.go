package agent

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/agent/admin"
	"github.com/culvert-mesh/culvert/agent/enroll"
	"github.com/culvert-mesh/culvert/agent/source"
	"github.com/culvert-mesh/culvert/policy"
)

func TestCanForetells(t *testing.T) {
	on, off := []policy.PeerAuthentication{strict("shop", "on", nil)}, []policy.PeerAuthentication{{Namespace: "shop", Name: "off", Mode: policy.Disable}}
	mutual := []policy.DestinationRule{destinationRule("shop", "mutual", "*.svc.cluster.local", policy.TLSIstioMutual)}
	plain := []policy.DestinationRule{destinationRule("shop", "plain", "*.svc.cluster.local", policy.TLSDisable)}
	simple := []policy.DestinationRule{destinationRule("shop", "simple", "*.svc.cluster.local", policy.TLSSimple)}
	const cart = "shop/cart-7f9c-1"
	for name, tc := range map[string]struct {
		policies []policy.PeerAuthentication
		rules    []policy.DestinationRule
		from, to string
		service  bool
		port     string
		want     admin.Outcome
		address  string
		reason   string
	}{
		"mesh to mesh":                    {nil, nil, cart, "shop/till-1", false, "8080", admin.OutcomeMTLS, "10.1.1.1:8080", "the server takes mTLS, by policy default"},
		"mesh to STRICT":                  {on, nil, cart, "shop/till-1", false, "8080", admin.OutcomeMTLS, "10.1.1.1:8080", "shop/on"},
		"mesh to DISABLE":                 {off, nil, cart, "shop/till-1", false, "8080", admin.OutcomePlaintext, "10.1.1.1:8080", "the server takes no mTLS, by policy shop/off"},
		"mesh to outside the mesh":        {on, nil, cart, "legacy", false, "", admin.OutcomePlaintext, "10.1.0.2:80", "not in the mesh"},
		"Service with both":               {nil, nil, cart, "shop/till", true, "", admin.OutcomeMixed, "10.2.0.2:80", "of 2, 1 mTLS, 1 plaintext, 0 refused"},
		"Service, mutual demanded":        {nil, mutual, cart, "old/legacy", true, "80", admin.OutcomeRefused, "10.2.0.3:80", "DestinationRule shop/mutual wants mutual TLS"},
		"Service, plaintext, STRICT":      {[]policy.PeerAuthentication{strict("istio-system", "on", nil)}, plain, cart, "shop/till", true, "80", admin.OutcomeMixed, "10.2.0.2:80", "1 plaintext, 1 refused"},
		"Service, TLS of its own":         {nil, simple, cart, "shop/till", true, "80", admin.OutcomeRefused, "10.2.0.2:80", "does not originate"},
		"rule does not count for pods":    {nil, mutual, cart, "legacy", false, "80", admin.OutcomePlaintext, "10.1.0.2:80", "not in the mesh"},
		"Service without endpoint":        {nil, nil, cart, "shop/cart", true, "idle", admin.OutcomeRefused, "10.2.0.1:81", "has no ready endpoint"},
		"Service that leads back":         {on, nil, cart, "shop/cart", true, "web", admin.OutcomePlaintext, "10.2.0.1:80", "the pod itself"},
		"headless Service":                {on, nil, cart, "shop/peers", true, "", admin.OutcomeMixed, "10.1.1.1:7000", "1 mTLS, 1 plaintext"},
		"outside to PERMISSIVE":           {nil, nil, admin.Outside, cart, false, "http", admin.OutcomePlaintext, "10.1.0.1:8080", "the client is not in the mesh"},
		"outside to STRICT":               {on, nil, admin.Outside, "shop/cart", true, "web", admin.OutcomeRefused, "10.2.0.1:80", "the client sends plaintext (the client is not in the mesh), and port 8080 is STRICT by policy shop/on"},
		"outside to Service w/o endpoint": {on, nil, admin.Outside, "shop/cart", true, "81", admin.OutcomeRefused, "10.2.0.1:81", "has no ready endpoint"},
		"legacy pod to STRICT":            {on, nil, "old/legacy", cart, false, "9090", admin.OutcomeRefused, "10.1.0.1:9090", "STRICT by policy shop/on"},
		"pod not enrolled yet to STRICT":  {on, nil, "shop/late", cart, false, "9090", admin.OutcomeRefused, "10.1.0.1:9090", "STRICT by policy shop/on"},
		"mesh to STRICT without a tunnel": {on, nil, cart, "shop/late", false, "80", admin.OutcomeRefused, "10.1.0.3:80", "no tunnel stands before it"},
		"STRICT that nobody enforces":     {[]policy.PeerAuthentication{strict("old", "on", nil)}, nil, admin.Outside, "old/legacy", false, "80", admin.OutcomePlaintext, "10.1.0.2:80", "not in the mesh"},
	} {
		t.Run(name, func(t *testing.T) {
			c := cluster()
			c.Policies, c.Rules = tc.policies, tc.rules
			_, i := answering(t, c)
			v, err := i.Can(t.Context(), admin.Question{From: tc.from, To: tc.to, Service: tc.service, Port: tc.port})
			if err != nil {
				t.Fatal(err)
			}
			if v.Outcome != tc.want || v.Address != tc.address || !strings.Contains(v.Reason, tc.reason) {
				t.Errorf("%s at %s because %q, want %s at %s because %q", v.Outcome, v.Address, v.Reason, tc.want, tc.address, tc.reason)
			}
			for _, e := range v.Endpoints {
				if (e.Outcome == admin.OutcomeMTLS) != (e.Identity != "") || (e.Outcome == admin.OutcomeRefused) != (e.RefusedBy != "") {
					t.Errorf("endpoint %+v", e)
				}
			}
		})
	}
}

func TestPortOfTheTunnelIsNobodysElse(t *testing.T) {
	const own = "port 15008 is the tunnel's own, never an application's"
	for name, tc := range map[string]struct {
		from, to string
		want     admin.Outcome
		reason   string
	}{
		"mesh to mesh":        {"shop/cart-7f9c-1", "shop/till-1", admin.OutcomeRefused, own},
		"outside to mesh":     {admin.Outside, "shop/cart-7f9c-1", admin.OutcomeRefused, own},
		"outside of the mesh": {admin.Outside, "old/legacy", admin.OutcomePlaintext, "not in the mesh"},
		"within a pod":        {"shop/cart-7f9c-1", "shop/cart-7f9c-1", admin.OutcomePlaintext, "the pod itself"},
	} {
		_, i := answering(t, cluster())
		v, err := i.Can(t.Context(), admin.Question{From: tc.from, To: tc.to, Port: "15008"})
		if err != nil || v.Outcome != tc.want || !strings.Contains(v.Reason, tc.reason) || v.OK() != (tc.want != admin.OutcomeRefused) {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
}

func TestTrialsAreComparedWithWhatWasForetold(t *testing.T) {
	endpoint := func(by string, client string) []admin.EndpointVerdict {
		return []admin.EndpointVerdict{{Address: "10.1.1.1:80", Outcome: admin.OutcomeRefused, RefusedBy: by, Client: client}}
	}
	byRule := &admin.Verdict{Outcome: admin.OutcomeRefused, Reason: "DestinationRule a/b wants mutual TLS", Endpoints: endpoint(admin.SideClient, "DestinationRule a/b wants mutual TLS")}
	byMode := &admin.Verdict{Outcome: admin.OutcomeRefused, Reason: "port 80 is STRICT by policy a/b", Endpoints: endpoint(admin.SideServer, "the client is not in the mesh")}
	nobody := &admin.Verdict{Outcome: admin.OutcomeRefused, Reason: "Service a/b has no ready endpoint"}
	own := &admin.Verdict{Outcome: admin.OutcomeRefused, Endpoints: endpoint(admin.SideServer, "")}
	own.Endpoints[0].Address = "[fd00::1]:15008"
	mtls, plaintext := &admin.Verdict{Outcome: admin.OutcomeMTLS}, &admin.Verdict{Outcome: admin.OutcomePlaintext}
	both := &admin.Verdict{Outcome: admin.OutcomeMixed, Endpoints: []admin.EndpointVerdict{{Outcome: admin.OutcomeMTLS}, {Outcome: admin.OutcomePlaintext}}}
	partly := &admin.Verdict{Outcome: admin.OutcomeMixed, Endpoints: append(endpoint(admin.SideServer, "x"), admin.EndpointVerdict{Outcome: admin.OutcomePlaintext})}
	for name, tc := range map[string]struct {
		v    *admin.Verdict
		t    admin.Trial
		want string // the difference; empty: as foretold
	}{
		"mTLS":                           {mtls, admin.Trial{Outcome: admin.TrialConnected, Carried: "mtls"}, ""},
		"mTLS on a node":                 {mtls, admin.Trial{Outcome: admin.TrialConnected, Carried: "same-node"}, ""},
		"mTLS that nobody saw":           {mtls, admin.Trial{Outcome: admin.TrialClosed}, ""},
		"mTLS in plaintext":              {mtls, admin.Trial{Outcome: admin.TrialConnected, Carried: "plaintext"}, "it was to be mtls, and was plaintext"},
		"plaintext by mTLS":              {plaintext, admin.Trial{Outcome: admin.TrialConnected, Carried: "mtls"}, "it was to be plaintext, and was mtls"},
		"mTLS that failed":               {mtls, admin.Trial{Outcome: admin.TrialReset, Carried: "failed", Reason: "certificate has expired"}, "it was to work, and did not: certificate has expired"},
		"plaintext that is refused":      {plaintext, admin.Trial{Outcome: admin.TrialRefused}, "it was to work, and did not"},
		"either, refused":                {both, admin.Trial{Outcome: admin.TrialReset}, "it was to work, and did not"},
		"one of several refuses":         {partly, admin.Trial{Outcome: admin.TrialReset}, ""},
		"refused as foretold":            {byMode, admin.Trial{Outcome: admin.TrialRefused}, ""},
		"and seen":                       {byMode, admin.Trial{Outcome: admin.TrialRefused, Carried: "refused", Reason: "plaintext to a STRICT port"}, ""},
		"refused, but it works":          {byMode, admin.Trial{Outcome: admin.TrialConnected}, "it was to be refused, and was not"},
		"refused, and dropped":           {byMode, admin.Trial{Outcome: admin.TrialTimeout}, "it was to be refused by the mesh, and failed for another reason"},
		"refused by rule":                {byRule, admin.Trial{Outcome: admin.TrialReset, Carried: "refused", Reason: "DestinationRule a/b wants mutual TLS"}, ""},
		"refused by another":             {byRule, admin.Trial{Outcome: admin.TrialReset, Carried: "refused", Reason: "this workload's certificate has expired"}, "it was refused for another reason: this workload's certificate has expired"},
		"failed instead":                 {byRule, admin.Trial{Outcome: admin.TrialReset, Carried: "failed", Reason: "connection refused"}, "it was to be refused by the mesh, and failed for another reason: connection refused"},
		"no endpoint":                    {nobody, admin.Trial{Outcome: admin.TrialReset, Carried: "failed", Reason: "Service a/b has no ready endpoint"}, ""},
		"the tunnel's port answers":      {own, admin.Trial{Outcome: admin.TrialConnected}, ""},
		"the tunnel's port, from a mesh": {own, admin.Trial{Outcome: admin.TrialReset, Carried: "refused", Reason: "illegal port"}, ""},
	} {
		if got := compare(tc.v, &tc.t); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func TestCanWithoutAnAnswer(t *testing.T) {
	c := cluster()
	c.Pods[5].Addresses = addresses("fd00::2")
	_, i := answering(t, c)
	for _, tc := range []struct {
		q    admin.Question
		want string
	}{
		{admin.Question{From: "shop/till-1", To: "shop/late"}, "is on node there"},
		{admin.Question{From: "shop/cart-7f9c-1", To: "shop/nobody", Port: "1"}, `pods "nobody" not found in namespace "shop"; did you mean shop/cart-7f9c-1, shop/host, shop/late, shop/till-1?`},
		{admin.Question{From: "shop/cart-7f9c-1", To: "shop/nothing", Service: true}, `services "nothing" not found in namespace "shop"; did you mean`},
		{admin.Question{From: admin.Outside, To: "shop/cart-7f9c-1"}, "say which port: it has 8080, 9090, http (8080)"},
		{admin.Question{From: admin.Outside, To: "shop/cart-7f9c-1", Port: "grpc"}, `has no port "grpc": it has 8080`},
		{admin.Question{From: admin.Outside, To: "shop/cart-7f9c-1", Port: "70000"}, `has no port "70000"`},
		{admin.Question{From: admin.Outside, To: "shop/till-1", Port: "http"}, `has no port "http" by its number`},
		{admin.Question{From: admin.Outside, To: "shop/cart", Service: true, Port: "8080"}, `has no port "8080": it has idle 81, web 80`},
		{admin.Question{From: "shop/cart-7f9c-1", To: "old/till-1", Port: "80"}, "no address of the same family"},
	} {
		if _, err := i.Can(t.Context(), tc.q); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, want %q", tc.q, err, tc.want)
		}
	}
}

func TestCanWarns(t *testing.T) {
	c := cluster()
	c.UnreadablePolicies = []string{"shop"}
	c.Pods[0].Containers = []string{"istio-proxy"}
	_, i := answering(t, c)
	onLoop(t, i, func(a *Agent) { clear(a.sessions) })
	v, err := i.Can(t.Context(), admin.Question{From: "shop/cart-7f9c-1", To: "shop/till-1", Port: "80"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"has a proxy of its own", "no tunnel is connected", "namespace shop cannot be read"} {
		if !hasText(v.Warnings, want) {
			t.Errorf("no warning %q in %q", want, v.Warnings)
		}
	}
}

// TestTry connects from this test's own network namespace, as for a client outside.
func TestTry(t *testing.T) {
	listen := func(serve func(net.Conn)) uint16 {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go serve(c)
			}
		}()
		return uint16(l.Addr().(*net.TCPAddr).Port)
	}
	held := make(chan struct{})
	t.Cleanup(func() { close(held) })
	stays := listen(func(c net.Conn) { <-held; c.Close() })
	speaks := listen(func(c net.Conn) { c.Write([]byte("hello")); <-held; c.Close() })
	closes := listen(func(c net.Conn) { c.Close() })
	resets := listen(func(c net.Conn) { c.(*net.TCPConn).SetLinger(0); c.Close() })
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := uint16(l.Addr().(*net.TCPAddr).Port)
	l.Close()

	c := cluster()
	c.Pods[4].Addresses = addresses("127.0.0.1")
	_, i := answering(t, c)
	for name, tc := range map[string]struct {
		port uint16
		want admin.TrialOutcome
	}{
		"stays open": {stays, admin.TrialConnected}, "says something": {speaks, admin.TrialConnected}, "closes": {closes, admin.TrialClosed},
		"resets": {resets, admin.TrialReset}, "nobody listens": {nobody, admin.TrialRefused},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := &question{verdict: &admin.Verdict{Outcome: admin.OutcomePlaintext}}
			if err := i.try(context.Background(), q, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), tc.port)); err != nil {
				t.Fatal(err)
			}
			worked := tc.want == admin.TrialConnected || tc.want == admin.TrialClosed
			if tried := q.verdict.Tried; tried.Outcome != tc.want || tried.AsForetold != worked || tried.Local == "" {
				t.Errorf("%+v, want %s", tried, tc.want)
			}
		})
	}
	t.Run("failures have names", func(t *testing.T) {
		for err, want := range map[error]admin.TrialOutcome{
			unix.ETIMEDOUT: admin.TrialTimeout, unix.EPERM: admin.TrialRefused, unix.EHOSTUNREACH: admin.TrialFailed, unix.ECONNRESET: admin.TrialReset,
		} {
			if got := failedConnect(err); got != want {
				t.Errorf("%v: %s", err, got)
			}
		}
	})
}

// TestTryFromAPodsNamespace connects within a namespace that this test's own cannot reach.
func TestTryFromAPodsNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root: makes a network namespace")
	}
	const name, address = "culvert-test-can", "10.77.9.2"
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	_ = exec.Command("ip", "netns", "del", name).Run()
	ip("netns", "add", name)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	ip("-n", name, "link", "set", "lo", "up")
	ip("-n", name, "addr", "add", address+"/32", "dev", "lo")

	c := cluster()
	c.Pods[4].Addresses, c.Pods[4].NetnsPath = addresses(address), "/run/netns/"+name
	netns, err := enroll.OpenNetns(c.Pods[4].NetnsPath, c.Pods[4].Addresses)
	if err != nil {
		t.Fatal(err)
	}
	defer netns.Close()
	l, err := netns.Listen(false, 0) // on loopback
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c.Pods = append(c.Pods, source.Pod{Namespace: "old", Name: "server", Node: "here", Addresses: addresses("127.0.0.1")})
	_, i := answering(t, c)
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	v, err := i.Can(t.Context(), admin.Question{From: "old/legacy", To: "old/server", Port: port, Try: true})
	if err != nil {
		t.Fatal(err)
	}
	if v.Tried == nil || v.Tried.Outcome != admin.TrialConnected || !v.Tried.AsForetold || !v.OK() {
		t.Errorf("from the pod: %+v", v.Tried)
	}
	v, err = i.Can(t.Context(), admin.Question{From: admin.Outside, To: "old/server", Port: port, Try: true})
	if err != nil {
		t.Fatal(err)
	}
	if v.Tried.Outcome != admin.TrialRefused || v.Tried.AsForetold || v.OK() {
		t.Errorf("from outside: %+v", v.Tried)
	}
	c.Pods[4].Addresses = addresses("10.77.9.3")
	_, i = answering(t, c)
	if _, err := i.Can(t.Context(), admin.Question{From: "old/legacy", To: "old/server", Port: port, Try: true}); !errors.Is(err, enroll.ErrNotThePod) {
		t.Errorf("a namespace that is not the pod's: %v", err)
	}
}
