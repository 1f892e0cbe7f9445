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

func TestCanWithoutAnAnswer(t *testing.T) {
	c := cluster()
	c.Pods[5].Addresses = addresses("fd00::2")
	_, i := answering(t, c)
	for _, tc := range []struct {
		q    admin.Question
		want string
	}{
		{admin.Question{From: "shop/till-1", To: "shop/late"}, "is on node there"},
		{admin.Question{From: "shop/cart-7f9c-1", To: "shop/nobody", Port: "1"}, "pod shop/nobody is not known"},
		{admin.Question{From: "shop/cart-7f9c-1", To: "shop/nothing", Service: true}, "Service shop/nothing is not known"},
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
